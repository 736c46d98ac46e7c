"""The dialects model servers speak."""

BUILT_IN = {
    "ollama": "hx_gateway.providers.ollama:OllamaProvider",
    "openai": "hx_gateway.providers.openai:OpenAIProvider",
    "vllm": "hx_gateway.providers.openai:OpenAIProvider",
    "llamacpp": "hx_gateway.providers.openai:OpenAIProvider",
    "litellm": "hx_gateway.providers.openai:OpenAIProvider",
}
"""Provider names and where their classes are; several servers share OpenAI's dialect."""
