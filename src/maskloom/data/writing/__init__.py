"""Documents to shards, in parts that can be restarted."""
