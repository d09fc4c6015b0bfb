"""Pipeline: a complete selection job, from files to files."""
