"""An HTTP server that answers like real LLM providers: OpenAI, Azure and Anthropic, plain and streamed.

For tests, demos and benchmarks: no network and no key is needed, usage and rate limits are really counted, and any
model can be told to be slow, to fail or to break off. It can serve recorded exchanges instead.

Run it with ``python -m pointsman.testing.provider``, or from Python as ``UpstreamServer`` (in a thread) or
``UpstreamProcess`` (in a process of its own).
"""

from __future__ import annotations

from .behaviour import ANY_MODEL, Behaviour, BrownOut, Delay, Limits, load_script
from .journal import ReceivedRequest
from .process import UpstreamProcess
from .replay import PICK_HEADER, RecordedExchange, ReplayIndex
from .server import UpstreamServer
from .tokens import count_tokens, filler, prompt_tokens, split_tokens

__all__ = [
    "ANY_MODEL",
    "PICK_HEADER",
    "Behaviour",
    "BrownOut",
    "Delay",
    "Limits",
    "ReceivedRequest",
    "RecordedExchange",
    "ReplayIndex",
    "UpstreamProcess",
    "UpstreamServer",
    "count_tokens",
    "filler",
    "load_script",
    "prompt_tokens",
    "split_tokens",
]
