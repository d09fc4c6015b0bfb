"""Planning: how many responses per prompt are worth keeping, and what a selection does to the loss it estimates."""
