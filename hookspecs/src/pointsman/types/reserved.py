"""Headers and fields of bodies that are not for plugins to see or to set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

CREDENTIAL_HEADERS: Final = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "litellm_user_api_key",
        "ocp-apim-subscription-key",
        "proxy-authorization",
        "sec-websocket-protocol",
        "set-cookie",
        "x-amz-security-token",
        "x-api-key",
        "x-goog-api-key",
        "x-litellm-api-key",
        "x-mcp-auth",
    }
)
"""Headers that carry credentials, lower case: LiteLLM's and the providers', and ``sec-websocket-protocol``, in which browsers
send a key. They, and all whose name ends in ``-authorization``, are removed from requests and answers before a plugin sees
them."""

_CREDENTIAL_SUFFIX: Final = "-authorization"


FRAMING_HEADERS: Final = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "transfer-encoding"}
)
"""Headers that frame an answer, lower case: a plugin that set one would break it."""


CREDENTIAL_FIELDS: Final = frozenset(
    {
        "api_key",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "azure_ad_token",
        "extra_headers",
        "headers",
        "vertex_credentials",
    }
)
"""Fields of a request's body with the client's own credentials for a provider. A plugin sees that they are there, as WITHHELD."""

WITHHELD: Final = "[withheld]"
"""What plugins see in place of a credential."""

FIXED_FIELDS: Final = CREDENTIAL_FIELDS | frozenset(
    {
        "api_base",
        "api_version",
        "base_url",
        "custom_llm_provider",
        "extra_body",
        "extra_query",
        "fallbacks",
        "litellm_metadata",
        "metadata",
        "max_retries",
        "mock_response",
        "model",
        "models",
        "num_retries",
        "stream",
        "timeout",
    }
)
"""Fields of a request's body that no ``transform_request`` may set: they decide where it goes and as what it counts."""


HOST_HEADERS: Final = frozenset({"x-pointsman-attempts", "x-pointsman-request-id", "x-pointsman-trace-id"})
"""Headers of answers that the host alone sets, lower case."""


@lru_cache(maxsize=1024)  # every request has the same names
def is_credential_header(name: str) -> bool:
    """Return whether a header, whose name is lower case, carries credentials."""
    return name in CREDENTIAL_HEADERS or name.endswith(_CREDENTIAL_SUFFIX)


def without_credentials(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers, whose names are lower case, without those that carry credentials."""
    return {name: value for name, value in headers.items() if not is_credential_header(name)}
