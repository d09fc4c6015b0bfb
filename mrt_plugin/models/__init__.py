"""Models: opening a model, its tokenizer and adapter; log-likelihoods; tiny local models."""
