"""Human labels: storage, assignment to annotators, aggregation, agreement."""
