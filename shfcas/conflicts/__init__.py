"""Conflict scores of candidate tables: PACS per completion, Kendall distance per prompt."""
