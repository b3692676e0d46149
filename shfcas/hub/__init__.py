"""Results on the Hugging Face Hub: upload, and cards of models and data sets."""
