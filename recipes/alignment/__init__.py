"""The experiments of arXiv 2403.11124 in miniature: `python -m recipes.alignment --help`."""
