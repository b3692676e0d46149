"""Conflict scores for candidate tables: PACS per completion, Kendall distance per prompt."""
