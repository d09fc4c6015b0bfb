"""Doctor: what this machine can run and what a recipe will do, told before an hour is lost."""
