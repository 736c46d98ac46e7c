"""What operators do around a running gateway: look at the fleet before it starts."""
