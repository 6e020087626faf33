"""Tokenizers: their files, what training needs of them, and how they are trained."""
