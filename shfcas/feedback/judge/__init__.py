"""Labels from a language model judge."""
