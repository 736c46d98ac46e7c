"""Stores that keep things outside of a worker: SQL, Redis and memory."""
