"""Verified bytes of blocks from disks, http(s) and S3, and the documents in them."""
