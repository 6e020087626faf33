"""The GPU path rehearsed on a machine without a GPU: what a compiler can tell is asked of the compiler.

    cases of benchmarks/step -> fake CUDA tensors -> dynamo, autograd, Inductor -> Triton -> ptxas -> machine code
    (compiling.py)             (fake_gpu.py, nvidia.c)     |                                            |
                                                     generated.py: launches, bytes         machine_code.py: instructions,
                                                           |                               registers, spills
                                                           +----------> facts, JSON <-------------------+
                                                                         |      |
                                          checks.py: limits, one table <-+      +-> prediction.py: rows a second

`__main__.py` runs the parts: the compilations, DeepSpeed's FusedAdam built for a Hopper (`fused_adam.py`), and the unit suite
at the lowest versions of torch and transformers that pyproject.toml admits. `report.py` writes docs/rehearsal.md. `setup.sh`
makes the environment, which is apart from the project's: torch's CUDA build takes 6 GB.

What is read from graphs and machine code depends on torch's insides: it is written for torch 2.11, and says so where it finds
another form. Nothing runs on a GPU, so that nothing here is a measurement.
"""
