"""What every exchange was and cost, written where a crash cannot take it."""
