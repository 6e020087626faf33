"""How torch computes in this process: set before CUDA is initialised, and the same on every rank.

- Products in bf16 and fp16 are summed in fp32 throughout. By default cuBLAS may round partial sums of a long product to 16 bits
  before it adds them up.
- fp32 products stay as torch has them: in full fp32, unless somebody allowed TF32.
- `engine.deterministic` takes of every operator the form that adds up in a fixed order: flash attention's backward, sums into
  an index (the gradients of embeddings and of `index_select`), cuBLAS with a workspace of its own for each stream, Inductor
  without measuring. An operator of torch that has no such form raises an error that names it. DeepSpeed's own operators,
  FusedAdam among them, work element by element. On CPUs all of it changes nothing.
"""

from __future__ import annotations

import os

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def settle_numerics(deterministic: bool) -> None:
    """Set how this process computes from here on; called before anything is on a GPU."""
    for dtype in ("bf16", "fp16"):
        setattr(torch.backends.cuda.matmul, f"allow_{dtype}_reduced_precision_reduction", False)
    if deterministic:
        # Read when cuBLAS is first used. A user's own value is kept: torch says if it will not do.
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # TORCHINDUCTOR_DETERMINISTIC is left alone
        torch.use_deterministic_algorithms(deterministic)  # Inductor's setting too
    # It would fill all memory that is taken with NaN, so that who reads what nobody wrote learns of it: a pass over memory that
    # training pays for at every operator.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic


def numerics_title(device: str, precision: str) -> str:
    """What a reader of the log should know of it, each with a comma behind; empty on a CPU, which has no choice."""
    if device != "cuda":
        return ""
    said = []
    if precision == "fp32":
        said.append("products in fp32" if torch.get_float32_matmul_precision() == "highest" else "products in TF32")
    if torch.are_deterministic_algorithms_enabled():
        said.append("deterministic")
    return "".join(f"{words}, " for words in said)
