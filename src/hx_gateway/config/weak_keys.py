"""Keys that protect nothing: those printed in documentation everywhere, and those too short to hold."""

from __future__ import annotations

import hashlib

MIN_CHARACTERS = 8
NEW_KEY = "python3 -c \"import secrets; print('sk-hx-' + secrets.token_urlsafe(32))\""
"""Command that makes a good key."""

# From the documentation, examples and default settings of gateways and model servers; compared without regard to case.
PUBLIC_KEYS = frozenset(
    """
    sk-1234 sk-12345 sk-123456 sk-1234567 sk-12345678 sk-123456789 sk-1234567890 sk-1234567890abcdef sk-hx-dev-1234 sk-hx-1234
    sk-master sk-master-key sk-my-master-key sk-litellm sk-litellm-master-key sk-proxy-key sk-test sk-test-key sk-secret sk-key
    sk-password sk-admin sk-default sk-example sk-placeholder sk-your-key sk-your-key-here sk-your-api-key sk-your-master-key
    sk-your-secret-key sk-xxx sk-xxxx sk-xxxxxxxx sk-no-key-required sk-anything sk-changeme sk-change-me sk-proj-1234 12345678
    123456789 1234567890 00000000 abcd1234 admin123 adminadmin api-key apikey bearer-token change-me change_me changeit changeme
    changeme123 default-key dummy-key example-key letmein1 litellm_master_key master-key master_key masterkey my-api-key
    my-master-key my-secret-key my_secret_key mysecretkey no-key-required not-needed password password1 password123 passw0rd
    placeholder replace-me replaceme secret-key secretkey super-secret supersecret test-key testtest token-abc123 your-api-key
    your-api-key-here your-key-here your-master-key your-secret-key your_api_key your_api_key_here your_master_key your_secret_key
    """.split()
)


def fault(key: str) -> str:
    """Why ``key`` must not be used, with the remedy; empty if it may."""
    if key.lower() in PUBLIC_KEYS:
        return f"is a publicly known key that anyone would try; make your own: {NEW_KEY}"
    if len(key) < MIN_CHARACTERS:
        return f"is shorter than {MIN_CHARACTERS} characters and can be guessed; make a longer one: {NEW_KEY}"
    if not key.isascii() or not key.isprintable() or key != key.strip():
        return f"cannot be sent as a bearer token: only ASCII characters can, without spaces at the ends; make a new one: {NEW_KEY}"
    return ""


def hash_fault(key_hash: str) -> str:
    """Why the key behind ``key_hash`` (``sha256:<hex>``) must not be used; empty if it may."""
    digest = key_hash.removeprefix("sha256:").lower()
    if any(hashlib.sha256(key.encode()).hexdigest() == digest for key in PUBLIC_KEYS):
        return f"is the hash of a publicly known key that anyone would try; make your own: {NEW_KEY}"
    return ""
