"""Training of reward and cost models on preferences."""
