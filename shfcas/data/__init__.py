"""Tables and records that all stages read and write: candidates, preferences, prompts."""
