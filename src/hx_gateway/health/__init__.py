"""What is known of endpoints without asking clients."""
