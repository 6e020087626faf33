"""A cloze test: one obvious word of a sentence is masked, and the model has five guesses.

    sentences.tsv   the sentences, one a line: the text with [MASK], a tab, the word
    everyday.tsv    forty others, of everyday things: for comparison
    items           reading them; which of them the training text has
    guessing        a model's guesses, and the most frequent tokens
    command         the command line

No guess of a model was seen before the sentences were written, and none was changed or taken out because of one. everyday.tsv
was written first. Two models hit 6 and 11 of its words, and it speaks of cards and cities, which documentation hardly does. So
sentences.tsv was written in the words of docstrings, still without a look at a guess.
"""
