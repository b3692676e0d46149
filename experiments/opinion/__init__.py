"""Experiments about the second opinion and arbitration, by the plan in docs/evidence-plan.md."""
