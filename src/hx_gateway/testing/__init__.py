"""A scripted model server and factories for tests and demos."""
