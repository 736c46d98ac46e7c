"""The gateway, by its former path."""
