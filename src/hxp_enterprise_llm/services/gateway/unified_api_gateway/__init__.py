"""The gateway and its configuration, by their former paths."""
