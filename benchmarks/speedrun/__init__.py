"""The lowest held-out loss for 240 CPU-seconds of training.

meter     CPU-seconds of training, measured in each rank
records   the rows of the table: a configuration and overrides
running   one training, its seconds and its held-out loss
report    results to docs/speedrun.md
command   the command line
"""
