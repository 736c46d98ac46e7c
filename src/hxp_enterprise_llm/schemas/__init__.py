"""Schemas, by their former path."""
