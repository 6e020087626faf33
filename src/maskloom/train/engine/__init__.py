"""DeepSpeed, and all that is known of it. Nothing outside of this package imports it.

    engine          `class Engine`, the face of it all: forward, backward, step, parts of parameters, loading, saving
    forward         kernels and compilation, chosen before DeepSpeed puts its hooks around the model
    configuration   configuration and world -> DeepSpeed's dict
    device          the device of a rank and how torch computes on it: precision, kernels, what the start warns of
    fused_adam      DeepSpeed's FusedAdam, on all ranks or on none
    ops             DeepSpeed's compiled operators: built by one rank of a machine, whatever a killed build left
    reshape         where an engine and a checkpoint keep their weights: a checkpoint of one layout into an engine of another
    files           checkpoints: loading without unpickling anything else, weights in fp32
    writing         what a checkpoint consists of, copied to be written later
    patches         what DeepSpeed does otherwise by default, and we change, each with its reason

What is chosen here, each because DeepSpeed 0.19 does otherwise by default:

- only the micro-batch is configured, never the global batch: accumulation is set before each micro-batch, so that the
  number of micro-batches can change between phases and the loss can be weighted over the global batch;
- half precision accumulates gradients in fp32 (in half, 256 micro-batches cost 4 % of the gradient);
- gradients are reduced once a step, also at stages 2 and 3 (`engine.reduce`), in buckets small enough to overlap;
- checkpoints are unpickled with an allow-list of four classes, and nothing else.
"""

from maskloom.train.engine.patches import import_quietly, pickle_stages_as_numbers

import_quietly()
pickle_stages_as_numbers()
