"""The index of a corpus: what it lists, its files, and how it is made."""
