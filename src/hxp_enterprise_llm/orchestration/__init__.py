"""Orchestration, by its former path."""
