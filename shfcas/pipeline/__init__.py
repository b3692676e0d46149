"""The whole loop in a run directory: sample, score, select, label, refine, fine-tune, evaluate."""
