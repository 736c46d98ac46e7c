"""Monitoring, by its former path."""
