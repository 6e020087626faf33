"""DeepSpeed, and all that is known of it. Nothing outside of this package imports it.

    configuration   configuration and world -> DeepSpeed's dict
    numerics        how torch computes in this process: sums of half-precision products, deterministic operators
    kernels         what `engine.kernels: auto` is on this machine, and what torch.compile lacks
    notes           what the start warns of: GPUs that torch cannot use, kernels that cannot be compiled
    building        model and dict -> engine: kernels, optimizer, what DeepSpeed is told by hand
    fused_adam      DeepSpeed's FusedAdam on all ranks or none; by what its library links (linked), compiled with the toolkit
                    that is here (cuda_home)
    ops             DeepSpeed's compiled operators: built by one rank of a machine, whatever a killed build left
    stepping        loss -> gradients, reduced over ranks -> weights
    writing         what a checkpoint consists of, copied to be written later
    reshape         a checkpoint of one layout into an engine of another
    files           checkpoints: loading without unpickling anything else, weights in fp32

What is done by hand here, each because DeepSpeed 0.19 does otherwise by default:

- only the micro-batch is configured, never the global batch: accumulation is set before each micro-batch, so that the
  number of micro-batches can change between phases and the loss can be weighted over the global batch;
- half precision accumulates gradients in fp32 (in half, 256 micro-batches cost 4 % of the gradient);
- gradients are reduced once a step, also at stages 2 and 3 (`engine.reduce`), in buckets small enough to overlap;
- the shared-memory collective is declared absent: nothing here uses it, and building it takes minutes at every first start;
- checkpoints are unpickled with an allow-list of four classes, and nothing else;
- the stage in a checkpoint is pickled by its number: Python 3.11 up to 3.11.3 would have it as a call of `getattr`, which no
  allow-list may hold.
"""

import copyreg
import logging

logging.disable(logging.WARNING)  # importing it announces, as a warning, that there is no GPU
from deepspeed.accelerator import get_accelerator  # noqa: E402

get_accelerator()
logging.disable(logging.NOTSET)
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402

copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
