"""Loss: the weighted negative log-likelihood of the trained tokens."""
