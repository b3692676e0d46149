"""Completions from the policy, with log-probabilities."""
