"""Configuration and world to a trained model: engine, schedule, checkpoints, metrics and the loop."""
