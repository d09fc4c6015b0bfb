"""Planning: choose how many responses to keep per prompt, and audit how a selection changes the loss estimate."""
