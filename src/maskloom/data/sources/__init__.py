"""Files and datasets to documents."""
