"""Weights, names and shapes are Hugging Face's; the forward over them is ours. `base` says what an architecture is."""
