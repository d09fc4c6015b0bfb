"""Models: open a model with its tokenizer and adapter, compute log-likelihoods, build tiny local models."""
