"""Compare the training objectives on data whose true distribution is known: `python -m recipes.objectives --help`."""
