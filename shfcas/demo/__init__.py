"""The demo: the whole loop on a small language model, with a proxy reward whose blind spot is known."""
