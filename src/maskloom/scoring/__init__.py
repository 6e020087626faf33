"""How well models guess masked words of a text: any of Hugging Face's, one or some side by side."""
