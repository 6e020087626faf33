"""Documents to shards: shuffled, in parts, restartable."""
