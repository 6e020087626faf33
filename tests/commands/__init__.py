"""A package, so that its files may be named as those of other folders are: test_index.py, test_shards.py."""
