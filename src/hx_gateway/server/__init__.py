"""The door: uvicorn with our HTTP protocol, workers, drain."""
