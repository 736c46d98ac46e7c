"""A model file served by llama.cpp in a child process."""
