"""The demo: its generated example, its training runs and its figures."""
