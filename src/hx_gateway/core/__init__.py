"""What every other room is built on: seams, the exchange, failures, time."""
