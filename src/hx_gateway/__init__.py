"""HX Gateway: the one OpenAI-compatible door to a private fleet of model servers."""
