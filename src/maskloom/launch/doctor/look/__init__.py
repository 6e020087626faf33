"""What a host finds out about itself.

What only a rank can know (the tokenizer as it reads it, blocks of shards, matrices on its GPUs) is found out by doing it.
Nothing is written but one file of a few bytes in the run's folder, which is removed. torch is imported where it is used: the
host's clock goes out before.
"""
