"""A first recipe: look at data and a card, choose values, and write them with their reasons."""
