"""Token counts by LiteLLM's tokenizers, of what ``pointsman.counting`` finds in a request."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import litellm
from litellm.litellm_core_utils import token_counter

from ..counting import MOST_CHARS_A_TOKEN, read_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Models with these in their names have vocabularies that LiteLLM downloads within the request, and again for each one
#: while the download fails: half a minute in which a worker answers nothing. They are counted with its default one.
_DOWNLOADED: Final = ("llama-2", "llama-3", "replicate", "command-r")
#: One model for each vocabulary that LiteLLM contains.
_LOADED: Final = ("gpt-4o", "claude-haiku-4-5")
#: A longer text is sampled: a tenth of a second of one processor, so that the prompts of others need not wait.
_COUNTED_CHARS: Final = 400_000
#: On the request path, a longer text is sampled: counting this many takes about two milliseconds.
_COUNTED_AT_ONCE_CHARS: Final = 8_000
#: Pieces of a sample; many small ones, so that the parts of a mixed text are all seen.
_PIECE_CHARS: Final = 250
_RANDOM: Final = random.SystemRandom()
#: LiteLLM's choice of a vocabulary takes twenty times as long as counting a short prompt. It is asked again after this time,
#: because which models are whose can change with its cost map.
_FRESH_S: Final = 10.0
_MOST_KEPT: Final = 1_000
#: A client chooses the name; no model has a longer one.
_LONGEST_KEPT_CHARS: Final = 256


class PromptTokenizer:
    """LiteLLM's token counter.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By the model: when it was found, by the clock, and what counts the tokens of a text.
        self._counters: dict[str, tuple[float, Callable[[str], int]]] = {}

    def load(self) -> None:
        """Load the vocabularies now: the first count takes about a second, in which a worker answers no request."""
        for model in _LOADED:
            litellm.token_counter(model=model, text="loaded")

    def count(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a request, whichever API it is for."""
        return read_prompt(body).tokens(partial(self.count_text, model))

    def estimate(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a short request; estimate those of a long one from samples, without delay."""
        return read_prompt(body).tokens(partial(self._count, model, most=_COUNTED_AT_ONCE_CHARS))

    def count_text(self, model: str, text: str) -> int:
        """Count the tokens of a text; estimate those of a very long one from samples."""
        return self._count(model, text, most=_COUNTED_CHARS)

    def _count(self, model: str, text: str, most: int) -> int:
        if len(text) <= most:
            return self._tokens(model, text) if text else 0
        pieces = most // _PIECE_CHARS
        step = len(text) // pieces
        # Where in its part of the text each piece is taken is not known before, so that nothing can be hidden between them.
        starts = (part * step + _RANDOM.randrange(max(1, step - _PIECE_CHARS + 1)) for part in range(pieces))
        sample = "".join(text[start : start + _PIECE_CHARS] for start in starts)
        counted = self._tokens(model, sample)
        return max(len(text) // MOST_CHARS_A_TOKEN, -(-counted * len(text) // len(sample)))

    def _tokens(self, model: str, text: str) -> int:
        if litellm.disable_token_counter is True:
            return 0
        now = self._clock()
        known = self._counters.get(model)
        if known is None or now - known[0] >= _FRESH_S:
            known = (now, _counter(model))
            if len(model) <= _LONGEST_KEPT_CHARS:
                if len(self._counters) >= _MOST_KEPT:
                    self._counters.clear()
                self._counters[model] = known
        return int(known[1](text))


def _counter(model: str) -> Callable[[str], int]:
    """Return LiteLLM's counter of texts for a model."""
    name = model.lower()
    if any(part in name for part in _DOWNLOADED):
        model = ""
    find = getattr(token_counter, "_get_count_function", None)
    counter: Callable[[str], int] = find(model) if find is not None else partial(_asked, model)
    return counter


def _asked(model: str, text: str) -> int:
    """Return LiteLLM's count by its public function, which chooses the vocabulary for each text."""
    return int(litellm.token_counter(model=model, text=text))
