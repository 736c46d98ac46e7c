"""The dialects model servers speak."""
