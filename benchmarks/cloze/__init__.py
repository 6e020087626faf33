"""A cloze test: one obvious word of a sentence is masked, and the model has five guesses.

    sentences.tsv   the sentences, one a line: the text with [MASK], a tab, the word
    items           reading them; which of them the training text has
    guessing        a model's guesses, and the most frequent tokens
    command         the command line

The sentences were written before any model was asked, by someone who knows documentation of Python packages. None was changed or
taken out because of a model's guesses.
"""
