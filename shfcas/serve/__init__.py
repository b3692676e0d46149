"""Rewards over HTTP, for trainers that run elsewhere."""
