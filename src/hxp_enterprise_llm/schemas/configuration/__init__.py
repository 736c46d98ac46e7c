"""Schemas of the configuration, by their former path."""
