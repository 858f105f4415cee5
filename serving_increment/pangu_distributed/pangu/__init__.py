"""The servable, by the name that its clients use."""
