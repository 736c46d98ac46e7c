"""Which dialect a LiteLLM provider prefix stands for, and where its servers are when no address is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """A dialect.

    Args:
        provider: The gateway's name for it; empty where it speaks none of the gateway's.
        url: Its address where the file gives none; empty where one must be given.
        level: How well it is carried over.
        message: What to know about it.
        key: Environment variable that LiteLLM takes its key from where the file gives none.
        path: Where its OpenAI dialect is below an address without a path.
    """

    provider: str = ""
    url: str = ""
    level: str = "exact"
    message: str = ""
    key: str = ""
    path: str = ""


_NATIVE = "uses Ollama's chat endpoint, with the model's own template, instead of generate"
_OUTSIDE = "is a provider outside your network, used by its OpenAI dialect; what that leaves out is not available"
_LIKE = "is used by its OpenAI dialect"


def _outside(prefix: str, url: str, key: str = "") -> Engine:
    return Engine("openai", url, "approximate", f"{prefix} {_OUTSIDE}", key or f"{prefix.upper()}_API_KEY")


_AZURE = "is asked at Azure's /openai/v1, by the name of its deployment and with the key as a bearer token; no api_version is needed there"


ENGINES: dict[str, Engine] = {
    "ollama": Engine("ollama", "http://localhost:11434", "exact", _NATIVE),
    "ollama_chat": Engine("ollama", "http://localhost:11434"),
    "openai": Engine("openai", "https://api.openai.com", key="OPENAI_API_KEY"),
    "custom_openai": Engine("openai"),
    "openai_like": Engine("openai"),
    "aiohttp_openai": Engine("openai", "https://api.openai.com", key="OPENAI_API_KEY"),
    "text-completion-openai": Engine("openai", "https://api.openai.com", key="OPENAI_API_KEY"),
    "hosted_vllm": Engine("vllm"),
    "vllm": Engine("vllm", "", "approximate", "LiteLLM loads vLLM into its own process; start it as a server and give its address"),
    "llamafile": Engine("llamacpp", "http://127.0.0.1:8080"),
    "lm_studio": Engine("openai", "http://127.0.0.1:1234"),
    "xinference": Engine("openai", "http://127.0.0.1:9997"),
    "docker_model_runner": Engine("openai", "http://localhost:12434/engines"),
    "lemonade": Engine("openai", "http://localhost:8000/api/v1"),
    "litellm_proxy": Engine("litellm"),
    "huggingface": Engine("openai", "", "approximate", f"a text generation server {_LIKE}"),
    "infinity": Engine("openai", "", "approximate", f"an Infinity server {_LIKE}"),
    "oobabooga": Engine("openai", "", "approximate", f"the server {_LIKE}"),
    "databricks": Engine("openai", "", "approximate", f"databricks {_OUTSIDE}"),
    "anthropic": _outside("anthropic", "https://api.anthropic.com"),
    "azure": Engine("openai", "", "approximate", _AZURE, path="/openai"),
    "baseten": _outside("baseten", "https://inference.baseten.co"),
    "cerebras": _outside("cerebras", "https://api.cerebras.ai"),
    "codestral": _outside("codestral", "https://codestral.mistral.ai"),
    "deepseek": _outside("deepseek", "https://api.deepseek.com"),
    "featherless_ai": _outside("featherless_ai", "https://api.featherless.ai"),
    "fireworks_ai": _outside("fireworks_ai", "https://api.fireworks.ai/inference"),
    "friendliai": _outside("friendliai", "https://api.friendli.ai/serverless"),
    "groq": _outside("groq", "https://api.groq.com/openai"),
    "hyperbolic": _outside("hyperbolic", "https://api.hyperbolic.xyz"),
    "lambda_ai": _outside("lambda_ai", "https://api.lambda.ai", "LAMBDA_API_KEY"),
    "meta_llama": _outside("meta_llama", "https://api.llama.com/compat", "LLAMA_API_KEY"),
    "minimax": _outside("minimax", "https://api.minimax.io"),
    "mistral": _outside("mistral", "https://api.mistral.ai"),
    "moonshot": _outside("moonshot", "https://api.moonshot.ai"),
    "morph": _outside("morph", "https://api.morphllm.com"),
    "nebius": _outside("nebius", "https://api.studio.nebius.ai"),
    "nscale": _outside("nscale", "https://inference.api.nscale.com"),
    "nvidia_nim": _outside("nvidia_nim", "https://integrate.api.nvidia.com"),
    "openrouter": _outside("openrouter", "https://openrouter.ai/api/v1"),
    "sambanova": _outside("sambanova", "https://api.sambanova.ai"),
    "together_ai": _outside("together_ai", "https://api.together.xyz"),
    "v0": _outside("v0", "https://api.v0.dev"),
    "vercel_ai_gateway": _outside("vercel_ai_gateway", "https://ai-gateway.vercel.sh"),
    "wandb": _outside("wandb", "https://api.inference.wandb.ai"),
    "xai": _outside("xai", "https://api.x.ai"),
}

_OTHERS = frozenset(
    """
    ai21 ai21_chat aiml aleph_alpha anyscale azure_ai azure_text bedrock bytez chatgpt clarifai cloudflare cohere cohere_chat cometapi
    custom dashscope datarobot deepgram deepinfra elevenlabs empower galadriel gemini gigachat github github_copilot gradient_ai heroku
    jina_ai langgraph maritalk nlp_cloud novita oci ovhcloud palm perplexity petals predibase recraft replicate sagemaker sagemaker_chat
    snowflake stability text-completion-codestral topaz triton vertex_ai vertex_ai_beta volcengine voyage watsonx watsonx_text zai
    """.split()
)


def engine_of(model: str, given: str) -> tuple[Engine, str]:
    """The dialect of a ``litellm_params.model``, and the name its server knows the model by.

    Args:
        model: With or without a prefix.
        given: ``custom_llm_provider``; empty for none.
    """
    prefix, slash, rest = model.partition("/")
    if given:
        return _named(given), rest if slash and prefix == given else model
    if slash and (prefix in ENGINES or prefix in _OTHERS):
        if prefix == "huggingface" and rest.startswith("tgi/"):
            rest = rest.removeprefix("tgi/")
        return _named(prefix), rest
    for start, prefix in (("gpt-", "openai"), ("o1", "openai"), ("o3", "openai"), ("text-embedding-", "openai"), ("claude-", "anthropic")):
        if model.startswith(start):
            return ENGINES[prefix], model
    why = "has no provider in front (LiteLLM refuses it, too, unless it knows the name); taken for a server of OpenAI's dialect"
    return Engine("openai", "", "approximate", why), model


def _named(prefix: str) -> Engine:
    why = f"{prefix} has a dialect of its own, which the gateway does not speak; keep it in LiteLLM and give that as litellm_proxy/…"
    return ENGINES.get(prefix) or Engine(level="unsupported", message=why)
