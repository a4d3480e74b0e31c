"""What LiteLLM is told when a plugin's attempts have failed: its retries, policies and fallbacks depend on it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from pointsman.errors import UpstreamError


@pytest.fixture
def executor() -> Any:
    # LiteLLM's own warnings are not ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pointsman.litellm.executor")


@pytest.mark.parametrize(
    ("error_class", "status", "expected", "shown"),
    [
        ("rate_limit", 429, "RateLimitError", 429),
        ("rate_limit", None, "RateLimitError", 429),
        ("timeout", 504, "Timeout", 504),
        ("timeout", None, "Timeout", 408),
        ("auth", 401, "AuthenticationError", 401),
        ("client", 422, "APIError", 422),
        ("client", 400, "BadRequestError", 400),
        ("context_window", 400, "ContextWindowExceededError", 400),
        ("content_policy", 400, "ContentPolicyViolationError", 400),
        ("not_found", 404, "NotFoundError", 404),
        ("server", 503, "APIError", 503),
        ("connection", None, "APIError", 502),
        ("nonsense", None, "APIError", 502),
    ],
)
def test_an_error_of_the_plugins_own_is_litellms_exception_of_its_class(
    executor: Any, error_class: str, status: int | None, expected: str, shown: int
) -> None:
    error = executor.final_error(UpstreamError("gave up", status=status, error_class=error_class))
    assert (type(error).__name__, error.status_code) == (expected, shown)
    assert "gave up" in str(error)


def test_the_error_of_a_failed_attempt_is_litellms_own_unchanged(executor: Any) -> None:
    """Also where LiteLLM had no deployment to call, which is none of its exceptions of providers."""
    original = ValueError("No deployments available for selected model")
    cause = original.__cause__ = KeyError("why")
    failed = executor.GatewayError("no deployment", status=429, error_class="rate_limit", retry_after_s=2.5)
    failed.original = original
    with pytest.raises(ValueError, match="No deployments available") as caught:
        executor.raise_final(failed)
    assert caught.value is original
    assert caught.value.__cause__ is cause
    assert original.headers == {"retry-after": "3"}  # type: ignore[attr-defined]
