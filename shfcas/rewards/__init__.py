"""Rewards for completions: scorers, shaping, tables, metrics, preflight checks."""
