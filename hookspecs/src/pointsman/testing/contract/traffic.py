"""The contract during traffic: settlements, odd values, growth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest

from ...store import MAX_TTL_S, open_store
from ...types import Endpoint, Identity, Outcome, Usage
from ..clock import FakeClock
from ..harness import Harness
from ..script import Step, error, ok
from .base import SCENARIOS, ContractBase, Scenario, check

_LONG: Final = "a" * 5000
_TEXTS: Final = ("", "模型-é-🙂", _LONG, "a\0b", "../../etc/passwd", "a b/c:{d}*?[e]'\"\\", "\ud800", "\u202e\r\n")

_BODIES: Final[tuple[Mapping[str, object], ...]] = (
    {},
    {"messages": None},
    {"messages": "text"},
    {"messages": [None, 1, {}, [], {"role": "user"}, {"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "🙂"}, {"type": "image_url"}, None, 7]}]},
    {"messages": [{"role": 1, "content": {"text": {"text": []}}}], "tools": "none", "system": 5},
    {"input": [1, 2, 3], "instructions": None},
    {"input": [[1, 2], [3]], "prompt": {}},
    {"messages": [], "max_tokens": "many", "n": 0, "stream_options": [], "user": 5, "metadata": "x"},
    {"messages": [], "max_tokens": -1, "max_completion_tokens": True, "n": 10**30, "temperature": float("nan")},
    {"file": {"filename": "a.wav", "type": "audio/wav", "data": b"RIFF\xff\x00"}, "language": "en"},
    {
        "image": [{"filename": "", "type": "image", "data": b""}, {"filename": "b.png", "data": b"\x89PNG"}],
        "prompt": "hi",
    },
    {"messages": [{"role": "user", "content": "\ud800" + _LONG}], "metadata": {"user_id": None, "tags": {}}},
)
_ANSWERS: Final[tuple[Step, ...]] = (
    ok(usage=None),
    ok("", usage=Usage()),
    ok(usage=Usage(prompt_tokens=2**53, completion_tokens=2**53, cached_tokens=2**53, estimated=True)),
    ok(usage=Usage(prompt_tokens=1, cached_tokens=5, cache_write_tokens=5, reasoning_tokens=9)),
    ok(
        headers={"": "", "retry-after": "-5", "x-ratelimit-remaining-requests": "many", "x-ratelimit-reset-tokens": "é"}
    ),
    ok(model="", cost_usd_micros=0, cached=True),
    ok(cost_usd_micros=2**53),
    error(None, message=""),
    error(599, retry_after_s=0.0, message=_LONG),
    error(429, retry_after_s=1e9, headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    error(418, message="\ud800🙂"),
)
_ROUND: Final = 40


class TrafficContract(ContractBase):
    """Settlements, odd values, growth."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
    def test_it_settles_once(self, scenario: Scenario) -> None:
        """However a request ends, it is settled once, at the first try, and no hook fails on the way."""
        self.run(self._settles_once(scenario))

    def test_it_survives_odd_but_legal_values(self) -> None:
        """No hook fails on what a client or a provider may send: strange names and bodies, no usage, no headers."""
        self.run(self._odd_values())

    def test_it_survives_a_gateway_that_knows_nothing(self) -> None:
        """No hook fails where there are no prices, and where the deployments change under a running worker."""
        self.run(self._poor_gateway())

    def test_its_keys_do_not_grow_with_the_requests(self) -> None:
        """What it keeps for ever does not grow with requests, sessions or end users, unless it says that it does."""
        self.run(self._growth())

    async def _settles_once(self, scenario: Scenario) -> None:
        async with self.worker(after=scenario.after) as h:
            before = len(h.settlements)
            result = await self.ask(h, **scenario.request)
            await h.settled()
            made = h.settlements[before:]
            check(len(made) == 1, f"{len(made)} settlements were made")
            check(made[0].request_id == result.request_id, "the settlement is another request's")
            check(not scenario.denied or result.outcome is Outcome.DENIED, "the later plugin's denial was lost")
            journal: Any = h.host.describe()["journal"]
            check(journal["retried"] == 0, f"settle had to be tried {1 + journal['retried']} times")
            self.check_healthy(h, "after the settlement")
        self.check_healthy(h, "after the stop")

    async def _odd_values(self) -> None:
        async with self.worker() as h:
            for text in _TEXTS:
                who = replace(
                    self.identity, end_user=text, user_id=text, team_id=text, org_id=text, key_alias=text, key_hash=text
                )
                await self._oddly(h, f"names {text[:20]!r}", identity=who, session_id=text, call_id=text, api_key=None)
                await self._oddly(h, f"model {text[:20]!r}", model=text, headers={text.lower(): text})
                await self._oddly(h, f"tenant {text[:20]!r}", identity=replace(who, tenant=text), api_key=None)
            await self._oddly(h, "nobody", identity=Identity(), api_key=None, headers={})
            for body in _BODIES:
                for endpoint in Endpoint:
                    await self._oddly(h, f"{endpoint} {body!r:.80}", body=body, endpoint=endpoint)
            for step in _ANSWERS:
                for stream in (False, True):
                    await self._oddly(h, f"answer {step!r:.80}", script=step, stream=stream)

    async def _oddly(self, h: Harness, what: str, **changes: Any) -> None:
        await self.ask(h, **changes)
        await h.settled()
        self.check_healthy(h, what)

    async def _poor_gateway(self) -> None:
        async with self.worker(prices={}) as h:
            await self._oddly(h, "without prices")
            h.gateway.catalog.replace([replace(d, id=f"{d.id}-new") for d in self.deployments])
            await self._oddly(h, "with other deployments")
            h.gateway.catalog.replace(())
            await self._oddly(h, "without deployments")

    async def _growth(self) -> None:
        clock = FakeClock()
        shift_s = 0.0
        # Seen after the longest time to live, every key that has one is gone.
        store = await open_store("memory", clock=lambda: clock.now() + shift_s)
        async with self.worker(store=store, clock=clock) as h:
            counts: list[set[str]] = []
            for turn in range(3):
                for number in range(_ROUND):
                    text = f"client-{turn}-{number}"
                    who = replace(self.identity, end_user=text)
                    await self.ask(
                        h, identity=who, session_id=text, call_id=text, headers={**self.headers, "x-a": text}
                    )
                    await h.clock.advance(0.5)
                await h.settled()
                await h.clock.advance(60.0)
                shift_s = MAX_TTL_S + 1.0
                counts.append({key for key, _ in await store.scan(f"{self.info.name}/")})
                shift_s = 0.0
            self.check_healthy(h, "after many requests")
        new = sorted(counts[2] - counts[1])
        check(
            self.keeps_request_keys or len(counts[2]) <= len(counts[1]),
            f"{_ROUND} requests left {len(new)} new keys without a time to live, for example {new[:3]}; "
            "give them one, or say keeps_request_keys = True",
        )
        check(
            not self.keeps_request_keys or len(counts[2]) - len(counts[1]) <= 4 * _ROUND,
            f"{_ROUND} requests left {len(new)} new keys: more than four each",
        )
