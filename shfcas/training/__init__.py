"""Training rooms: supervised fine-tuning, reward models, PPO."""
