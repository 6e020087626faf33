"""How well models predict masked tokens of a text: any Hugging Face model, one or several side by side."""
