"""Files and datasets to documents. `inputs.py` has the table of kinds, and one file each defines them."""
