"""Doctor: check what this machine can run and what a recipe will do, before any training."""
