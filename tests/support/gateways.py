"""Random configurations on real proxies: bare LiteLLM, and LiteLLM with plugins, before one provider.

A batch is one configuration that contains many cases, each with model groups, fallbacks and deployments of its own, so that
two proxies answer for all of them. What LiteLLM only has once (retries' policies, checks, cooldowns, strategy, cache) and the
plugins are the batch's.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import httpx
from anything import anything

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

#: What a deployment does with every request.
BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    "good": Behaviour(text="a good answer"),
    "broken": Behaviour(error_ratios={500: 1.0}),
    "limited": Behaviour(error_ratios={429: 1.0}, retry_after_s=1),
    "locked": Behaviour(error_ratios={401: 1.0}),
    "gone": Behaviour(error_ratios={404: 1.0}),
    "picky": Behaviour(error_ratios={400: 1.0}),
    "short": Behaviour(error_ratios={400: 1.0}, bad_request="context_window"),
    "prudish": Behaviour(error_ratios={400: 1.0}, bad_request="content_policy"),
    "hollow": Behaviour(text=""),
    "once": Behaviour(fail_first=1, fail_with=503, text="a good answer"),
    "dropping": Behaviour(fault="drop"),
}
PATHS: Final = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
GROUPS: Final = ("a", "b", "c")
FALLBACKS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
#: In the order that the README recommends.
PLUGINS: Final = ("quota", "canary", "registry", "signals", "residency", "racing", "balance", "shadow", "billing")
#: These groups of each case are local models, and how many of them fit into memory.
LOCAL: Final = ("b", "c")
ROOM: Final = 4
#: What a deployment of the configuration may have beside its model.
PARAMS: Final = ("weight", "order", "tags", "region_name", "rpm", "tpm")
#: So many requests a minute are soon used up.
TIGHT: Final = 2
#: How long LiteLLM leaves a deployment out, in seconds, and what is added to be sure that it does no longer.
COOLDOWN_S: Final = 1
MARGIN_S: Final = 0.5
TACTICS: Final = ("adaptive", "round_robin", "random", "p2c", "least_busy", "latency_based", "cache_affinity")
#: How often each request is sent, and sent again where the plugins have failed it: to the bare proxy, and with cooldowns to
#: both, each time when they are over.
TRIES: Final = 2
CONFIRMING: Final = 24
REPEATING: Final = 6

#: Text in an answer of any endpoint, plain or streamed.
_TEXT: Final = re.compile(r'"(?:content|text|delta)": ?"((?:[^"\\\\]|\\.)*)"')

Case = Mapping[str, Any]
#: A request: its case's number, its index in the case, and the kind of name that it asks for.
Ask = tuple[int, int, str]


def draw_case(rng: random.Random) -> dict[str, Any]:
    """Return a random case."""

    def rate() -> int:
        return rng.choice([10_000] * 5 + [TIGHT])

    def deployment(*, weighted: bool, limited: bool) -> dict[str, Any]:
        # Beside a weight or a rate, LiteLLM's shuffle takes a missing one for 0, so that it chooses the others only.
        return {
            "does": rng.choice(["good", "good", "good", *BEHAVIOURS]),
            "weight": rng.choice([1, 1, 3, 0]) if weighted else None,
            "order": rng.choice([None, None, None, 1, 2]),
            "tags": rng.choice([None, None, None, ["paid"], ["free"]]),
            "region_name": rng.choice([None, None, None, "eu", "us"]),
            "rpm": rate() if weighted else None,
            "tpm": 10 * rate() if limited else None,
            "max_input_tokens": rng.choice([None, None, None, 30, 100_000]),
        }

    def request() -> dict[str, Any]:
        endpoint = rng.choice(list(PATHS))
        return {
            "endpoint": endpoint,
            "stream": endpoint != "embeddings" and rng.random() < 0.5,
            "tags": rng.choice([None, None, ["paid"], ["free"]]),
            "region": rng.choice([None, None, None, "eu"]),
            "long": rng.random() < 0.2,
            "retries": rng.choice([0, 0, 1, 2]),
            "fallbacks": rng.choice([None, None, None, ["b"], ["c"]]),
            "session": rng.random() < 0.3,
            "same": rng.random() < 0.2,
        }

    def members() -> list[dict[str, Any]]:
        weighted = rng.random() < 0.5
        # Without weights, the shuffle is by rates, and nearly always chooses the one that has more.
        limited = weighted and rng.random() < 0.6
        return [deployment(weighted=weighted, limited=limited) for _ in range(rng.randint(1, 3))]

    return {
        "groups": {group: members() for group in GROUPS},
        **{kind: rng.choice([[], ["b"], ["c"], ["b", "c"]]) for kind in FALLBACKS},
        "raced": rng.random() < 0.5,
        "requests": [request() for _ in range(rng.randint(1, 2))],
    }


def draw_batch(
    rng: random.Random, *, plugins: Sequence[str] | None = None, cooldowns: bool | None = None
) -> dict[str, Any]:
    """Return a random batch without its cases.

    Args:
        rng: Where the randomness comes from.
        plugins: The plugins; a random choice of them, in random order, by default.
        cooldowns: Whether LiteLLM leaves out for a while what has failed; at random by default.
    """
    if cooldowns is None:
        cooldowns = rng.random() < 0.5
    cooling = {"allowed_fails": rng.choice([0, 1, 2]), "cooldown_time": COOLDOWN_S}
    batch: dict[str, Any] = {
        "plugins": list(plugins) if plugins is not None else rng.sample(PLUGINS, rng.randint(1, len(PLUGINS))),
        "tactic": rng.choice(TACTICS),
        "cache": rng.random() < 0.5,
        "router": {
            "routing_strategy": rng.choice(
                ["simple-shuffle", "simple-shuffle", "least-busy", "usage-based-routing-v2"]
            ),
            "enable_pre_call_checks": rng.random() < 0.7,
            "enable_tag_filtering": rng.random() < 0.7,
            "enable_weighted_failover": rng.random() < 0.5,
            **(cooling if cooldowns else {"disable_cooldowns": True}),
            "optional_pre_call_checks": rng.choice([[], ["session_affinity"], ["enforce_model_rate_limits"]]),
        },
    }
    if batch["router"]["enable_weighted_failover"]:
        # LiteLLM has it with this strategy only.
        batch["router"]["routing_strategy"] = "simple-shuffle"
    return batch


def _name(number: int, group: str) -> str:
    return f"n{number}-{group}"


def model_list(cases: Sequence[Case], upstream: str) -> list[dict[str, Any]]:
    """Return the deployments of these cases; what one does is the provider's model that it calls."""
    return [
        {
            "model_name": _name(number, group),
            "litellm_params": {
                "model": f"openai/{_name(number, group)}-{index}",
                "api_base": f"{upstream}/v1",
                "api_key": "upstream-key",
                **{k: member[k] for k in PARAMS if member[k] is not None},
            },
            "model_info": {
                "id": f"{_name(number, group)}-{index}",
                **({"max_input_tokens": member["max_input_tokens"]} if member["max_input_tokens"] else {}),
            },
        }
        for number, case in enumerate(cases)
        for group, members in case["groups"].items()
        for index, member in enumerate(members)
    ]


def bare(batch: Case, cases: Sequence[Case], upstream: str) -> dict[str, Any]:
    """Return the configuration without plugins."""
    # Others of LiteLLM's strategies always choose the same of equal deployments, which is not every choice: balance, and what
    # mirrors keep busy, change it.
    router = {"num_retries": 0, "retry_after": 0, **batch["router"], "routing_strategy": "simple-shuffle"}
    for kind in FALLBACKS:
        router[kind] = [
            {_name(number, "a"): [_name(number, group) for group in case[kind]]}
            for number, case in enumerate(cases)
            if case[kind]
        ]
    cache = {"cache": True, "cache_params": {"type": "local"}} if batch["cache"] else {}
    return {"model_list": model_list(cases, upstream), "router_settings": router, "litellm_settings": cache}


def with_plugins(batch: Case, cases: Sequence[Case], upstream: str, models: str, directory: Path) -> dict[str, Any]:
    """Return the same configuration with the batch's plugins; ``models`` is the URL of a server of local models."""
    config = bare(batch, cases, upstream)
    config["router_settings"]["routing_strategy"] = batch["router"]["routing_strategy"]
    config["litellm_settings"] = {**config["litellm_settings"], "callbacks": ["pointsman.litellm.handler"]}
    config["pointsman"] = {
        "store": {"backend": "disk", "path": str(directory / "store")},
        "plugins": [{name: _section(name, batch, cases, models, directory)} for name in batch["plugins"]],
    }
    return config


def _section(name: str, batch: Case, cases: Sequence[Case], models: str, directory: Path) -> dict[str, Any]:
    numbers = range(len(cases))
    match name:
        case "quota":
            limits = {"requests_per_minute": 1_000_000, "max_concurrent_requests": 100}
            return {"tenants": [{"id": "acme", "limits": limits}], "default_tenant": "acme"}
        case "registry":
            version = {"version": "1", "active": True}
            return {
                "versions": [
                    {"id": f"v{n}", "name": _name(n, "version"), "path": _name(n, "a"), **version} for n in numbers
                ]
            }
        case "canary":
            return {
                "experiments": [
                    {
                        "name": f"x{n}",
                        "model": _name(n, "arm"),
                        "stable": _name(n, "a"),
                        "canary": _name(n, "b"),
                        "fallback_to_stable": True,
                        "steps": [50, 100],
                    }
                    for n in numbers
                ]
            }
        case "signals":
            return {"check_local": False}
        case "racing":
            delay = {"fixed_ms": 100, "fixed_plain_ms": 100, "floor_ms": 1}
            groups = {_name(n, "a"): {} for n, case_ in enumerate(cases) if case_["raced"]}
            defaults = {"delay": delay, "budget_ratio": 4, "budget_burst": 1000}
            return {"groups": groups, "defaults": defaults, "budget": {"ratio": 4, "burst": 1000}}
        case "residency":
            local = {_name(n, group): {"footprint": 1} for n in numbers for group in LOCAL}
            server = {"kind": "generic", "url": models}
            return {"pools": {"gpu": {"budget": ROOM, "server": server, "models": local, "min_residence_s": 0}}}
        case "balance":
            return {"tactic": batch["tactic"]}
        case "shadow":
            return {
                "mirrors": [
                    {"name": f"m{n}", "model": _name(n, "a"), "challenger": _name(n, "c"), "sample_rate": 0.5}
                    for n in numbers
                ]
            }
    return {
        "sinks": [{"ndjson": {"path": str(directory / "bills.ndjson")}}],
        "outbox": {"path": str(directory / "outbox.sqlite")},
    }


@dataclass(frozen=True)
class Broken:
    """A request that LiteLLM answers every time, and that it did not answer with plugins on."""

    case: int
    request: int
    model: str
    status: int
    text: str


class Gateways:
    """Both proxies of a batch."""

    def __init__(self, batch: Case, cases: Sequence[Case], plain: httpx.Client, ours: httpx.Client) -> None:
        self.batch, self.cases = batch, cases
        self._clients = {"bare": plain, "ours": ours}
        self._served: dict[Ask, bool] = {}
        self._sent = 0

    def send(self, side: str, ask: Ask, *, new: bool = False) -> httpx.Response:
        """Send a request to one of the proxies, and read its whole answer; a new one has a text and session of its own."""
        number, index, kind = ask
        request = self.cases[number]["requests"][index]
        self._sent += 1
        # The same text again may be answered from LiteLLM's cache.
        text = f"Case {number}, {'the same' if request['same'] and not new else self._sent}. " + "word " * (
            60 if request["long"] else 1
        )
        body: dict[str, Any] = {"model": _name(number, kind), "num_retries": request["retries"]}
        if request["endpoint"] in {"responses", "embeddings"}:
            body["input"] = text
        else:
            body["messages"] = [{"role": "user", "content": text}]
        if request["endpoint"] == "messages":
            body["max_tokens"] = 64
        if request["stream"]:
            body["stream"] = True
        if request["tags"]:
            body["litellm_metadata" if request["endpoint"] in {"messages", "responses"} else "metadata"] = {
                "tags": request["tags"]
            }
        if request["region"]:
            body["allowed_model_region"] = request["region"]
        if request["fallbacks"]:
            body["fallbacks"] = [_name(number, group) for group in request["fallbacks"]]
        headers = {"x-litellm-session-id": f"session-{number}-{index}"} if request["session"] and not new else {}
        try:
            return self._clients[side].post(PATHS[request["endpoint"]], json=body, headers=headers)
        except httpx.TimeoutException as err:
            # LiteLLM alone may keep a client waiting for ever, too.
            return httpx.Response(httpx.codes.GATEWAY_TIMEOUT, text=f"no answer in time: {err!r}")

    def asks(self) -> Iterator[Ask]:
        """Return every request of every case, under every name that the plugins give it."""
        kinds = ["a", *(k for k, name in (("version", "registry"), ("arm", "canary")) if name in self.batch["plugins"])]
        for number, case in enumerate(self.cases):
            for index, kind in product(range(len(case["requests"])), kinds):
                yield number, index, kind

    def serves(self, ask: Ask) -> bool:
        """Return whether the bare proxy has answered all tries of a request; an arm's both groups have to."""
        number, index, _ = ask
        for group in _groups(ask):
            if (number, index, group) not in self._served:
                self._served[number, index, group] = self._repeat("bare", (number, index, group), TRIES) is None
        return all(self._served[number, index, group] for group in _groups(ask))

    def _repeat(self, side: str, ask: Ask, tries: int, *, new: bool = False) -> httpx.Response | None:
        """Send a request so often, and return the first answer that is none."""
        return next((answer for _ in range(tries) if not is_answer(answer := self.send(side, ask, new=new))), None)

    def broken(self) -> tuple[list[Broken], int]:
        """Return what the plugins break, and how many requests the bare proxy answers every time."""
        found, sure = [], 0
        for number, index, kind in self.asks():
            if not self.serves((number, index, kind)):
                continue
            sure += 1
            bad = self._repeat("ours", (number, index, kind), TRIES)
            if (
                bad is not None
                and not self._is_limited((number, index, kind), bad)
                and self._is_certain((number, index, kind))
            ):
                found.append(Broken(number, index, kind, bad.status_code, bad.text[-400:]))
        return found, sure

    def _is_limited(self, ask: Ask, answer: httpx.Response) -> bool:
        """Return whether a rate of LiteLLM's may be why a request is refused.

        What the plugins' own names are asked for is counted as well, and so are some streams that LiteLLM alone counts not at
        all. The client may then see the error of a fallback. A rate is no reason where the request can always go to a good
        deployment that has none.
        """
        number, index, _ = ask
        case = self.cases[number]
        reached = {
            *_groups(ask),
            *(case["requests"][index]["fallbacks"] or ()),
            *(g for k in FALLBACKS for g in case[k]),
        }
        groups = [case["groups"][group] for group in reached]
        answered = answer.status_code in {httpx.codes.OK, httpx.codes.GATEWAY_TIMEOUT}
        if answered or not any(_is_tight(m) for g in groups for m in g):
            return False
        return not any(
            _is_open(member) for group in groups if all(m["order"] is None for m in group) for member in group
        )

    def _is_certain(self, ask: Ask) -> bool:
        """Return whether LiteLLM answers for certain what the plugins have failed.

        What a choice of deployments has saved so far is not certain. With cooldowns, what either proxy answers depends on what
        others have asked before; so both begin anew each time, and the plugins must fail again.
        """
        number, index, _ = ask
        case = self.cases[number]
        if case["requests"][index]["endpoint"] == "embeddings" and any(
            member["does"] == "once" for members in case["groups"].values() for member in members
        ):
            # LiteLLM alone lets the provider's client repeat calls for embeddings; with plugins each call is an attempt.
            return False
        bare = [(number, index, group) for group in _groups(ask)]
        if "cooldown_time" not in self.batch["router"]:
            return all(self._repeat("bare", one, CONFIRMING, new=True) is None for one in bare)
        if all(self._from_rest("ours", ask) for _ in range(REPEATING)):
            return False
        return all(self._from_rest("bare", one) for one in bare for _ in range(CONFIRMING))

    def _from_rest(self, side: str, ask: Ask) -> bool:
        """Return whether a proxy answers all tries of a request when its cooldowns are over."""
        time.sleep(COOLDOWN_S + MARGIN_S)
        return self._repeat(side, ask, TRIES, new=True) is None


def _groups(ask: Ask) -> tuple[str, ...]:
    """Return the groups of a request's name; those of an arm may be either."""
    return ("a", "b") if ask[2] == "arm" else ("a",)


def _is_tight(member: Case) -> bool:
    return member["rpm"] == TIGHT or member["tpm"] == 10 * TIGHT


def _is_open(member: Case) -> bool:
    """Return whether a deployment is good, and nothing about a request or a rate keeps it from answering."""
    limits = (member["tags"], member["region_name"], member["max_input_tokens"])
    return member["does"] == "good" and member["weight"] != 0 and not _is_tight(member) and not any(limits)


def is_answer(answer: httpx.Response) -> bool:
    """Return whether a client has its answer: with content, plain or in pieces, and not only a status."""
    text = "".join(_TEXT.findall(answer.text))
    return answer.status_code == httpx.codes.OK and ("a good answer" in text or '"embedding"' in answer.text)


@contextmanager
def running(batch: Case, cases: Sequence[Case], directory: Path) -> Iterator[Gateways]:
    """Run both proxies of a batch."""
    with UpstreamServer() as upstream, anything() as models:
        for number, case in enumerate(cases):
            for group, members in case["groups"].items():
                for index, member in enumerate(members):
                    upstream.behave(f"{_name(number, group)}-{index}", BEHAVIOURS[member["does"]])
        ours = with_plugins(batch, cases, upstream.url, models.url, directory)
        with (
            ProxyServer(bare(batch, cases, upstream.url), directory / "bare") as one,
            ProxyServer(ours, directory / "ours") as other,
            one.client(timeout=60) as plain,
            other.client(timeout=60) as routed,
        ):
            yield Gateways(batch, cases, plain, routed)
