"""What goes with a model that is given to others: its card, and the files of other libraries."""
