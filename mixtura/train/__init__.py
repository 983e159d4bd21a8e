"""Training: recipes, data, the loop and its checkpoints."""
