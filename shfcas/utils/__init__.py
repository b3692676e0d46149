"""Helpers without knowledge of language models: configuration, files, errors, seeds, progress, statistics."""
