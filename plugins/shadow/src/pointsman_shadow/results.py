"""What is kept of a pair: one JSON object, without the answers' texts unless the configuration keeps them redacted.

A text is redacted before it is kept: by patterns first, then by a function of the operator's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from pointsman.errors import ConfigError
from pointsman.store import JSON

from .comparison import RATIOS, Comparison, Metric, Pair, Side
from .evidence import SIDES, JsonObject

if TYPE_CHECKING:
    from .config import MirrorConfig, Redaction

GROUP: Final = "pointsman_shadow.redactors"
#: What a side of a result has only while texts are kept.
_TEXTS: Final = frozenset({"text", "tools"})


class ResultFormat:
    """Turns pairs into results.

    Args:
        config: The mirror's configuration.

    Raises:
        ConfigError: the redactor cannot be found.
    """

    def __init__(self, config: MirrorConfig) -> None:
        self._keep_texts = config.keep_texts
        self._max_text_chars = config.max_text_chars
        self._redact = Redactor(config.redact)

    def of(
        self, pair: Pair, champion: Side, challenger: Side, comparison: Comparison, *, run: int, now: float
    ) -> tuple[JsonObject, int]:
        """Return the result of a pair, and how many of its sides have no texts because the redactor failed.

        Args:
            pair: The pair.
            champion: Its primary.
            challenger: Its mirror.
            comparison: Their comparison.
            run: The number of the mirror's run.
            now: Unix seconds.
        """
        sides = {"champion": champion, "challenger": challenger}
        shown = {name: self._side(side) for name, side in sides.items()}
        unredacted = sum(
            self._keep_texts and side.answer is not None and "tools" not in shown[name] for name, side in sides.items()
        )
        result = {
            "run": run,
            "at": now,
            "request_id": pair.ctx.request_id,
            "mirror_request_id": pair.mirror_id,
            "model": pair.ctx.model,
            "endpoint": str(pair.ctx.endpoint),
            "stream": pair.ctx.stream,
            "labels": dict(pair.labels),
            **shown,
            "comparison": {str(metric): _figure(metric, value) for metric, value in comparison.values.items()},
        }
        return result, unredacted

    def _side(self, side: Side) -> JsonObject:
        answer = side.answer
        shown: JsonObject = {
            "outcome": str(side.outcome),
            "error": side.error,
            "deployment": side.deployment,
            "status": side.status,
            "latency_ms": _rounded(side.latency_ms),
            "first_token_ms": _rounded(side.first_token_ms),
            "prompt_tokens": side.prompt_tokens,
            "completion_tokens": side.completion_tokens,
            "cost_usd_micros": side.cost_usd_micros,
            "cached": side.cached,
            "finish_reason": None if answer is None else answer.finish_reason,
            "text_chars": None if answer is None else len(answer.text),
            "tool_calls": None if answer is None else len(answer.tool_calls),
        }
        if answer is not None and self._keep_texts:
            try:
                texts = {
                    "text": self._redact(answer.text, self._max_text_chars),
                    "tools": [
                        {
                            "name": self._redact(call.name, self._max_text_chars),
                            "arguments": self._redact(call.arguments, self._max_text_chars),
                        }
                        for call in answer.tool_calls
                    ],
                }
            except Exception:  # noqa: BLE001  # the operator's own function; what it has not seen is not kept
                return shown
            shown |= texts
        return shown


def without_texts(result: JSON) -> JSON:
    """Return a stored result without the answers' texts."""
    if not isinstance(result, Mapping):
        return result
    return {
        name: {key: value for key, value in part.items() if key not in _TEXTS}
        if name in SIDES and isinstance(part, Mapping)
        else part
        for name, part in result.items()
    }


def _figure(metric: Metric, value: float) -> float:
    """Return a value as people read it: a ratio instead of its logarithm."""
    return round(2**value if metric in RATIOS else value, 6)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class Redactor:
    """Takes out of texts what must not be kept.

    Args:
        config: Patterns and the name of a function.

    Raises:
        ConfigError: the function cannot be found.
    """

    def __init__(self, config: Redaction) -> None:
        self._patterns = [re.compile(pattern) for pattern in config.patterns]
        self._replacement = config.replacement
        self._function = None if config.hook is None else load(config.hook)

    def __call__(self, text: str, max_chars: int) -> str:
        """Return the text without it, cut to ``max_chars``.

        Raises:
            Exception: whatever the operator's function raises; the text must not be kept then.
        """
        for pattern in self._patterns:
            # A replacement is text, never a template.
            text = pattern.sub(lambda _: self._replacement, text)
        if self._function is not None:
            text = self._function(text)
            if not isinstance(text, str):
                raise TypeError(f"the redactor returned {type(text).__name__}, not text")
        return text[:max_chars]


def load(name: str) -> Callable[[str], str]:
    """Return a function by the name of its entry point.

    Raises:
        ConfigError: none or several have the name, or it cannot be imported or called.
    """
    points = entry_points(group=GROUP, name=name)
    if len(points) != 1:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        what = "there is no" if not points else "several packages have a"
        raise ConfigError(f"redact.hook: {what} redactor {name!r} in the entry-point group {GROUP}; known: {known}")
    (point,) = points
    try:
        function = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as err:
        raise ConfigError(f"redact.hook: {point.value!r} cannot be imported: {type(err).__name__}: {err}") from err
    if not callable(function):
        raise ConfigError(f"redact.hook: {point.value!r} is a {type(function).__name__}, not a function of text")
    found: Callable[[str], str] = function
    return found
