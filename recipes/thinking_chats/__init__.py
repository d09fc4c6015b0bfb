"""One chat set with a long system text and thinking turns, trained by Axolotl without and with the plugin."""
