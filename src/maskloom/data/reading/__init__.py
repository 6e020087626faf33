"""Bytes of shards from disks, http and S3, and the samples in them."""
