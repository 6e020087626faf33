"""Weights, names and shapes are Hugging Face's; the forward over them is ours.

base          what an architecture is: `Architecture`, one row of the table
architecture  the table `ARCHITECTURES`, and `add` for one of your own
bert          BERT; each architecture is one such file
masked_lm     `MaskedLM`: the forward, from a micro-batch to the sum of its losses
layers        a transformer layer as a pure function; attention: within pieces; head: the decoder; kernels/: what is fused
build         a model from scratch; warm_start: one from a checkpoint, which `description` and `stored` read
positions     how many positions a model has, and a checkpoint that is given more
outline       shapes without weights; flops: operations a token; overflow: where a value stopped being finite
"""
