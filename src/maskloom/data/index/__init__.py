"""The index of a corpus: its files, the corpus they describe, how it is opened, and how it is made."""
