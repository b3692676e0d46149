"""The page where people answer: a small server in the run directory's own process."""
