"""Text to masked batches: corpus -> shards -> index -> blocks -> rows -> masked rows -> batches."""
