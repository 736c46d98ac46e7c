"""Services, by their former paths."""
