"""BERT's parameters are Hugging Face's; the forward over them is ours."""
