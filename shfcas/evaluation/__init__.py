"""Metrics of policies, and diagnosis of how well conflict finds reward model errors."""
