"""Policies and reward models: find, load and save."""
