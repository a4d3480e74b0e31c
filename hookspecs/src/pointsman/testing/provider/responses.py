"""The wire format of OpenAI's responses.

Source: OpenAI's API reference, and recorded answers. The error event has its error nested, as the service sends it and
unlike what the reference says; it is followed by ``response.failed``.
"""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING, Any

from .failures import SERVER_ERROR
from .tokens import encoded_tokens
from .wire import SLOT, Stream, Turn, dumps, named_event, new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .content import Content

    Item = dict[str, Any]

_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def plain(turn: Turn) -> bytes:
    """Return the body of a plain answer."""
    return dumps(_finished(_response(turn), turn.content, _items(turn.content)))


def stream(turn: Turn) -> Stream:
    """Return a streamed answer: the whole sequence of events from ``response.created`` to ``response.completed``."""
    content, response, items, events = turn.content, _response(turn), _items(turn.content), _Events()
    opening = [
        events.write("response.created", response=response),
        events.write("response.in_progress", response=response),
    ]
    visible = list(enumerate(items))
    if content.reasoning_tokens:
        opening += [events.added(*visible[0]), events.done(*visible.pop(0))]
    if content.tool_calls:
        tokens = chain.from_iterable(events.call(index, item) for index, item in visible)
        closing: Iterator[bytes] = iter(())
    else:
        opening += events.text_opening(*visible[0])
        tokens = chain(events.text_tokens(*visible[0]))
        closing = events.text_closing(*visible[0])

    def end() -> Iterator[bytes]:
        finished = _finished(response, content, items)
        yield events.write(f"response.{finished['status']}", response=finished)

    def failure() -> list[bytes]:
        error = {**SERVER_ERROR, "code": "server_error"}
        failed = {**response, "status": "failed", "error": {"code": error["code"], "message": error["message"]}}
        return [events.write("error", error=error), events.write("response.failed", response=failed)]

    return Stream(opening=opening, tokens=tokens, closing=chain(closing, end()), failure=failure)


def usage(content: Content) -> dict[str, Any]:
    """Return the usage object."""
    return {
        "input_tokens": content.prompt_tokens,
        "input_tokens_details": {"cached_tokens": content.cached_tokens},
        "output_tokens": content.output_tokens,
        "output_tokens_details": {"reasoning_tokens": content.reasoning_tokens},
        "total_tokens": content.prompt_tokens + content.output_tokens,
    }


class _Events:
    """Writes events with rising sequence numbers; generators number theirs when they are read."""

    def __init__(self) -> None:
        self._numbers = count()

    def write(self, kind: str, **fields: Any) -> bytes:
        return named_event({"type": kind, "sequence_number": next(self._numbers), **fields})

    def added(self, index: int, item: Item) -> bytes:
        begun = dict(item)
        if item["type"] == "message":
            begun |= {"status": "in_progress", "content": []}
        elif item["type"] == "function_call":
            begun |= {"status": "in_progress", "arguments": ""}
        return self.write("response.output_item.added", output_index=index, item=begun)

    def done(self, index: int, item: Item) -> bytes:
        return self.write("response.output_item.done", output_index=index, item=item)

    def text_opening(self, index: int, item: Item) -> list[bytes]:
        added = self.added(index, item)
        part = {**item["content"][0], "text": ""}
        return [added, self.write("response.content_part.added", **_part(index, item), part=part)]

    def text_tokens(self, index: int, item: Item) -> Iterator[bytes]:
        where = {**_part(index, item), "logprobs": []}
        return self._deltas("response.output_text.delta", item["content"][0]["text"], where)

    def text_closing(self, index: int, item: Item) -> Iterator[bytes]:
        where, part = _part(index, item), item["content"][0]
        yield self.write("response.output_text.done", **where, logprobs=[], text=part["text"])
        yield self.write("response.content_part.done", **where, part=part)
        yield self.done(index, item)

    def call(self, index: int, item: Item) -> Iterator[bytes]:
        yield self.added(index, item)
        where = {"item_id": item["id"], "output_index": index}
        yield from self._deltas("response.function_call_arguments.delta", item["arguments"], where)
        yield self.write(
            "response.function_call_arguments.done", **where, name=item["name"], arguments=item["arguments"]
        )
        yield self.done(index, item)

    def _deltas(self, kind: str, text: str, where: dict[str, Any]) -> Iterator[bytes]:
        sample = named_event({"type": kind, "sequence_number": SLOT, **where, "delta": SLOT})
        head, middle, tail = sample.split(dumps(SLOT))
        for piece in encoded_tokens(text):
            yield b"%b%d%b%b%b" % (head, next(self._numbers), middle, piece, tail)


def _part(index: int, item: Item) -> dict[str, Any]:
    return {"item_id": item["id"], "output_index": index, "content_index": 0}


def _items(content: Content) -> list[Item]:
    """Return the finished output items."""
    items: list[Item] = []
    if content.reasoning_tokens:
        items.append({"id": new_id("rs_"), "type": "reasoning", "summary": []})
    if not content.tool_calls:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": content.text}
        status = "incomplete" if content.finish == "length" else "completed"
        items.append(
            {"id": new_id("msg_"), "type": "message", "status": status, "role": "assistant", "content": [part]}
        )
    for call in content.tool_calls:
        item = {"id": new_id("fc_"), "type": "function_call", "status": "completed", "call_id": new_id("call_")}
        items.append({**item, "name": call.name, "arguments": call.arguments})
    return items


def _response(turn: Turn) -> dict[str, Any]:
    """Return the response object as it is before anything has been produced."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": turn.created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": turn.content.model,
        "output": [],
        "service_tier": "default",
        "usage": None,
        **{key: turn.body.get(key, value) for key, value in _ECHOED.items()},
    }


def _finished(response: dict[str, Any], content: Content, items: list[Item]) -> dict[str, Any]:
    cut = content.finish == "length"
    return {
        **response,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": items,
        "usage": usage(content),
    }
