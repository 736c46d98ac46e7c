"""The straight way of an inference request."""
