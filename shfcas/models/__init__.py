"""Policies and reward models: finding, loading and saving them."""
