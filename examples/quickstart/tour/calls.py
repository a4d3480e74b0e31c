"""The demo's requests, made with the real OpenAI and Anthropic clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import anthropic
import httpx
import openai

QUESTION: Final = "In one short sentence: what does a pointsman do at a railway junction?"
DOCUMENTS: Final = (
    "A pointsman sets the points of a junction, so that every train gets the track it is meant for.",
    "A canary release sends a small share of the traffic to a new version and watches what becomes of it.",
    "A rate limit says how many requests and tokens a provider accepts in a minute before it answers 429.",
)
MAX_TOKENS: Final = 24
TIMEOUT_S: Final = 60.0

ApiError: Final = (openai.APIError, anthropic.APIError)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to make.

    Attributes:
        client: ``OpenAI`` or ``Anthropic``.
        endpoint: ``chat``, ``messages``, ``responses`` or ``embeddings``.
        model: The name to ask for.
        stream: Whether as a stream.
    """

    client: str
    endpoint: str
    model: str
    stream: bool = False

    def __str__(self) -> str:
        return f"{self.client} {self.endpoint}{' (streamed)' if self.stream else ''} of {self.model!r}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client got.

    Attributes:
        status: HTTP status; 0 without an answer.
        headers: Response headers.
        content: The text, or for embeddings the number of vectors as text.
        error: What went wrong, or an empty text.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is complete and says something."""
        return self.status == httpx.codes.OK and not self.error and bool(self.content)

    @property
    def request_id(self) -> str:
        """The id under which the traces know it."""
        return self.headers.get("x-pointsman-request-id", "")

    @property
    def version(self) -> str | None:
        """The version that the registry chose."""
        return self.headers.get("x-pointsman-version")


class Clients:
    """Both clients, pointed at one proxy. They may be used by several threads at once.

    Args:
        url: The proxy's base URL.
        key: A key that it accepts.
    """

    def __init__(self, url: str, key: str) -> None:
        # Retries are the gateway's business: a client that retries by itself would hide what is to be seen.
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT_S)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=TIMEOUT_S)
        self._makers: Mapping[str, Callable[[Call], tuple[Mapping[str, str], Callable[[], str]]]] = {
            "chat": self._chat,
            "messages": self._messages,
            "responses": self._responses,
            "embeddings": self._embeddings,
        }

    def send(self, call: Call) -> Answer:
        """Make a request and read the whole answer."""
        headers: Mapping[str, str] = {}
        try:
            headers, read = self._makers[call.endpoint](call)
            return Answer(httpx.codes.OK, headers, read())
        except (openai.APIStatusError, anthropic.APIStatusError) as err:
            return Answer(err.status_code, err.response.headers, error=_message(err))
        except ApiError as err:
            return Answer(httpx.codes.OK if headers else 0, headers, error=_message(err))

    def _chat(self, call: Call) -> tuple[Mapping[str, str], Callable[[], str]]:
        create = self.openai.chat.completions.with_raw_response.create
        if call.stream:
            raw = create(model=call.model, messages=[_ASK], max_tokens=MAX_TOKENS, stream=True)
            pieces = (chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
            return raw.headers, lambda: "".join(pieces)
        plain = create(model=call.model, messages=[_ASK], max_tokens=MAX_TOKENS)
        return plain.headers, lambda: plain.parse().choices[0].message.content or ""

    def _responses(self, call: Call) -> tuple[Mapping[str, str], Callable[[], str]]:
        create = self.openai.responses.with_raw_response.create
        if call.stream:
            raw = create(model=call.model, input=QUESTION, max_output_tokens=MAX_TOKENS, stream=True)
            pieces = (event.delta for event in raw.parse() if event.type == "response.output_text.delta")
            return raw.headers, lambda: "".join(pieces)
        plain = create(model=call.model, input=QUESTION, max_output_tokens=MAX_TOKENS)
        return plain.headers, lambda: plain.parse().output_text

    def _messages(self, call: Call) -> tuple[Mapping[str, str], Callable[[], str]]:
        create = self.anthropic.messages.with_raw_response.create
        if call.stream:
            raw = create(model=call.model, messages=[_ASK_CLAUDE], max_tokens=MAX_TOKENS, stream=True)
            deltas = (event.delta for event in raw.parse() if event.type == "content_block_delta")
            return raw.headers, lambda: "".join(delta.text for delta in deltas if delta.type == "text_delta")
        plain = create(model=call.model, messages=[_ASK_CLAUDE], max_tokens=MAX_TOKENS)
        return plain.headers, lambda: "".join(block.text for block in plain.parse().content if block.type == "text")

    def _embeddings(self, call: Call) -> tuple[Mapping[str, str], Callable[[], str]]:
        raw = self.openai.embeddings.with_raw_response.create(model=call.model, input=list(DOCUMENTS))
        return raw.headers, lambda: str(len(raw.parse().data))


_ASK: Final[openai.types.chat.ChatCompletionUserMessageParam] = {"role": "user", "content": QUESTION}
_ASK_CLAUDE: Final[anthropic.types.MessageParam] = {"role": "user", "content": QUESTION}


def _message(err: openai.APIError | anthropic.APIError) -> str:
    """Return what the server said, without the client's own words around it."""
    body = err.body if isinstance(err.body, Mapping) else {}
    inner = body.get("error", body)
    said = inner.get("message") if isinstance(inner, Mapping) else None
    return str(said or err.message)
