"""Completions of a policy, with log-probabilities."""
