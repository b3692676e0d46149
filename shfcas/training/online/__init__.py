"""RLOO and GRPO through TRL's trainers."""
