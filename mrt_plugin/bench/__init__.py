"""Side-by-side measurements on the user's own machine."""
