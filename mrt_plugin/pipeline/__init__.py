"""Pipeline: one selection job, from files to files."""
