"""Amounts agree to the last digit with a second calculation, which reads LiteLLM's cost map by code of its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from pointsman import pricing
from pointsman.types import Deployment, Usage

REQUESTS = 10_000
MODELS = 120
PROVIDERS = frozenset({"openai", "anthropic", "gemini", "azure", "xai", "mistral", "groq", "deepseek", "cohere"})
SIZES = (0, 1, 900, 99_999, 100_001, 128_001, 200_000, 200_001, 272_001, 900_000)
TIERS = {"flex": "_flex", "priority": "_priority"}
#: Tiers that have no price in any entry.
NEW_TIERS = ("scale", "reserved")
PROMPT_PARTS = {"audio": "input_cost_per_audio_token", "image": "input_cost_per_image_token"}
ANSWER_PARTS = {"audio": "output_cost_per_audio_token", "image": "output_cost_per_image_token"}


@pytest.fixture
def prices() -> Any:
    return pytest.importorskip("pointsman.litellm.prices")


class Oracle:
    """The price of a request by the keys of one entry of the cost map.

    Args:
        entry: The entry.
        provider: Whose model it is.
        size: Tokens of the prompt.
        tier: The service tier.
    """

    def __init__(self, entry: Mapping[str, Any], provider: str, size: int, tier: str | None) -> None:
        self.entry = entry
        self.suffix = TIERS.get(tier or "", "")
        steps = sorted(
            {
                (
                    int(digits) * (1000 if rest.startswith("k") else 1),
                    f"_above_{digits}{'k' * rest.startswith('k')}_tokens",
                )
                for key, value in entry.items()
                if "_above_" in key and value is not None
                for digits, rest in [split(key.rsplit("_above_", 1)[1])]
                if digits and rest.removeprefix("k") in {"_tokens", f"_tokens{self.suffix}"}
            }
        )
        least = 1 if provider == "xai" else 0
        self.steps = [name for count, name in steps if size > count - least]

    def unit(self, key: str, otherwise: Decimal | None = None, *, sized: bool = True) -> Decimal | None:
        """Return the price under a key: of the highest step that the prompt has passed, and of the tier if it has one."""
        for step in (*(reversed(self.steps) if sized else ()), ""):
            for suffix in (self.suffix, ""):
                value = self.entry.get(f"{key}{step}{suffix}")
                if value is not None:
                    return Decimal(str(value))
        return otherwise

    def knows(self, key: str, step: str = "") -> bool:
        """Return whether the tier has a price of its own for what is not free otherwise."""
        return not self.entry.get(key + step) or self.entry.get(key + step + self.suffix) is not None

    def whole(self, key: str) -> tuple[Decimal | None, bool]:
        """Return the price of what is no special part, and whether the tier has it for a prompt of this size."""
        step = next((step for step in reversed(self.steps) if self.entry.get(key + step) is not None), "")
        known = self.knows(key, step)
        return self.unit(key) if known else None, known

    def reasoning(self, output: Decimal | None) -> Decimal | None:
        own = self.entry.get(f"output_cost_per_reasoning_token{self.suffix}")
        if own is None and self.suffix and self.entry.get(f"output_cost_per_token{self.suffix}") is not None:
            return output
        own = self.entry.get("output_cost_per_reasoning_token") if own is None else own
        return output if own is None else Decimal(str(own))


def split(text: str) -> tuple[str, str]:
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return digits, text[len(digits) :]


def expected(entry: Mapping[str, Any], provider: str, case: Mapping[str, Any]) -> Decimal | None:
    oracle = Oracle(entry, provider, case["prompt"], case["tier"])
    main = ("input_cost_per_token", "output_cost_per_token")
    if case["tier"] in NEW_TIERS or not all(oracle.knows(key) for key in main):
        return None if case["prompt"] + case["completion"] else Decimal(0)
    (whole, _), (answer, known) = map(oracle.whole, main)
    if not answer and known:
        answer = oracle.unit("output_cost_per_image_token", answer, sized=False)
    write = oracle.unit("cache_creation_input_token_cost", whole)
    lines: list[tuple[int, Decimal | None]] = [
        (case["cached"], oracle.unit("cache_read_input_token_cost", whole)),
        (case["hour"], hour(oracle, write)),
        (case["minutes"], write),
        (case["in_audio"], oracle.unit(PROMPT_PARTS["audio"], whole)),
        (case["in_image"], oracle.unit(PROMPT_PARTS["image"], whole, sized=False)),
        (case["in_text"], whole),
        (case["thought"], oracle.reasoning(answer)),
        (case["out_audio"], flat(entry, ANSWER_PARTS["audio"], answer)),
        (case["out_image"], oracle.unit(ANSWER_PARTS["image"], answer, sized=False)),
        (case["out_text"], answer),
    ]
    total = Decimal(0)
    for tokens, usd in lines:
        if tokens and usd is None:
            return None
        total += tokens * (usd or Decimal(0))
    return total


def hour(oracle: Oracle, write: Decimal | None) -> Decimal | None:
    for step in (*reversed(oracle.steps), ""):
        for suffix in (oracle.suffix, ""):
            value = oracle.entry.get(f"cache_creation_input_token_cost_above_1hr{step}{suffix}")
            if value is not None:
                return Decimal(str(value))
    return write


def flat(entry: Mapping[str, Any], key: str, otherwise: Decimal | None) -> Decimal | None:
    value = entry.get(key)
    return otherwise if value is None else Decimal(str(value))


def drawn(rng: random.Random) -> dict[str, Any]:
    """Return a request: parts that add up."""

    def shares(whole: int, count: int) -> list[int]:
        found = []
        for _ in range(count):
            part = rng.choice((0, 0, rng.randint(0, whole)))
            found.append(part)
            whole -= part
        return [*found, whole]

    prompt, completion = rng.choice(SIZES), rng.choice((0, 1, 700, 40_000))
    cached, hour_, minutes, in_audio, in_image, in_text = shares(prompt, 5)
    thought, out_audio, out_image, out_text = shares(completion, 3)
    return {
        "prompt": prompt,
        "completion": completion,
        "cached": cached,
        "hour": hour_,
        "minutes": minutes,
        "in_audio": in_audio,
        "in_image": in_image,
        "in_text": in_text,
        "thought": thought,
        "out_audio": out_audio,
        "out_image": out_image,
        "out_text": out_text,
        "tier": rng.choice((*4 * (None, "default", *TIERS), rng.choice(NEW_TIERS))),
    }


def usage_of(case: Mapping[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=case["prompt"],
        completion_tokens=case["completion"],
        cached_tokens=case["cached"],
        cache_write_tokens=case["hour"] + case["minutes"],
        cache_write_1h_tokens=case["hour"],
        audio_prompt_tokens=case["in_audio"],
        image_prompt_tokens=case["in_image"],
        reasoning_tokens=case["thought"],
        audio_completion_tokens=case["out_audio"],
        image_completion_tokens=case["out_image"],
        service_tier=case["tier"],
    )


def test_ten_thousand_requests_cost_what_the_cost_map_says(prices: Any) -> None:
    rng = random.Random(20)
    litellm = prices.litellm
    names = sorted(
        name
        for name, entry in litellm.model_cost.items()
        if entry.get("mode") in {"chat", "responses", "embedding"}
        and entry.get("input_cost_per_token")
        # Other rules than a price a token: by ranges, by the hour, by the provider's own list.
        and not {"tiered_pricing", "off_peak_pricing"} & set(entry)
        and entry.get("litellm_provider") in PROVIDERS
        and litellm.model_cost.get(name.removeprefix(f"{entry['litellm_provider']}/")) in (None, entry)
    )
    # Those with prices for sizes, tiers and lifetimes are the interesting ones.
    rich = [
        name for name in names if any("_above_" in key or key.endswith("_flex") for key in litellm.model_cost[name])
    ]
    chosen = rng.sample(rich, MODELS // 2) + rng.sample(names, MODELS // 2)
    cost_map = prices.CostMap()
    agreed = unpriced = 0
    for number in range(REQUESTS):
        name = chosen[number % MODELS]
        entry = litellm.model_cost[name]
        provider = entry["litellm_provider"]
        deployment = Deployment(
            id=f"d-{number % MODELS}", group="g", provider=provider, model=name.removeprefix(f"{provider}/")
        )
        info = litellm.get_model_info(deployment.model, provider) if number < MODELS else None
        if info is not None and info["key"] != name:
            chosen[number] = chosen[number - 1] if number else names[0]
            continue
        case = drawn(rng)
        if case["tier"] in TIERS and rng.random() < 0.8 and f"input_cost_per_token_{case['tier']}" not in entry:
            case["tier"] = None
        cost = pricing.total_usd(usage_of(case), lambda used, which=deployment: cost_map.get(which, used))
        right = expected(entry, provider, case)
        assert cost == right, (name, case)
        agreed += cost is not None
        unpriced += cost is None
    assert agreed > REQUESTS * 0.8
    assert unpriced > REQUESTS * 0.05
    assert agreed + unpriced > REQUESTS - MODELS


def test_tokens_cost_what_litellm_itself_computes(prices: Any) -> None:
    """Within what its binary floating point loses."""
    calculation = prices.calculation
    rng = random.Random(7)
    cost_map = prices.CostMap()
    for model, provider in (
        ("claude-sonnet-4-5-20250929", "anthropic"),
        ("gpt-5-mini", "openai"),
        ("gemini-2.5-pro", "gemini"),
    ):
        deployment = Deployment(id=f"d-{model}", group="g", provider=provider, model=model)
        for _ in range(200):
            case = {**drawn(rng), "out_audio": 0, "out_image": 0, "in_audio": 0, "in_image": 0, "tier": None}
            case["in_text"] = case["prompt"] - case["cached"] - case["hour"] - case["minutes"]
            case["out_text"] = case["completion"] - case["thought"]
            lifetimes = {"ephemeral_1h_input_tokens": case["hour"], "ephemeral_5m_input_tokens": case["minutes"]}
            counted = prices.litellm.Usage(
                prompt_tokens=case["prompt"],
                completion_tokens=case["completion"],
                total_tokens=case["prompt"] + case["completion"],
                prompt_tokens_details={
                    "cached_tokens": case["cached"],
                    "cache_creation_tokens": case["hour"] + case["minutes"],
                    "cache_creation_token_details": lifetimes,
                },
                completion_tokens_details={"reasoning_tokens": case["thought"]},
            )
            theirs = sum(
                calculation.generic_cost_per_token(
                    model=model, usage=counted, custom_llm_provider=provider, service_tier=case["tier"]
                )
            )
            ours = pricing.token_usd(usage_of(case), cost_map.get(deployment))
            assert ours is not None
            assert float(ours) == pytest.approx(theirs, rel=1e-9), (model, case)


def unit_prices(entry: Mapping[str, Any]) -> dict[str, Decimal]:
    """Return what one of each thing other than a token costs by an entry of the cost map; a second has 1000 ``..._ms``."""

    def usd(key: str) -> Decimal | None:
        value = entry.get(key)
        return None if value is None else Decimal(str(value))

    found: dict[str, Decimal | None] = {}
    match entry.get("mode"):
        case "audio_speech":
            found["characters"] = usd("input_cost_per_character")
        case "audio_transcription":
            # The map repeats for the answer what a second of sound costs; it is charged once.
            second = usd("output_cost_per_second") or usd("input_cost_per_second")
            found["audio_ms"] = None if second is None else second / 1000
        case "rerank":
            found["search_units"] = usd("input_cost_per_query")
        case "ocr":
            found["pages"] = usd("ocr_cost_per_page")
            found["annotated_pages"] = usd("annotation_cost_per_page")
        case "image_generation" | "image_edit" if not {"input_cost_per_image", "input_cost_per_pixel"} & set(entry):
            found["images"] = usd("output_cost_per_image")
        case "video_generation" if "output_cost_per_video_per_second" not in entry:
            second = usd("output_cost_per_second")
            found["video_ms"] = None if second is None else second / 1000
        case "chat" | "responses" if "web_search_billing_unit" not in entry:
            sizes = entry.get("search_context_cost_per_query") or {}
            for size in ("low", "medium", "high"):
                price = sizes.get(f"search_context_size_{size}")
                found[f"searches {size}"] = None if price is None else Decimal(str(price))
    return {name: price for name, price in found.items() if price is not None}


def test_everything_else_costs_what_the_cost_map_says(prices: Any) -> None:
    """Characters, seconds, searches, pages and images of every model that has a price for them."""
    rng = random.Random(3)
    litellm = prices.litellm
    cost_map = prices.CostMap()
    compared = dict.fromkeys(("characters", "audio_ms", "search_units", "pages", "images", "video_ms", "searches"), 0)
    for name, entry in litellm.model_cost.items():
        provider = entry.get("litellm_provider") or ""
        deployment = Deployment(id=name, group="g", provider=provider, model=name.removeprefix(f"{provider}/"))
        for unit, usd in unit_prices(entry).items():
            what, _, size = unit.partition(" ")
            # Gemini and Vertex AI charge all searches of one request together.
            if what == "searches" and provider.startswith(("gemini", "vertex_ai")):
                continue
            known: Mapping[str, Any] = {}
            with contextlib.suppress(Exception):  # LiteLLM raises bare exceptions for models it does not know
                known = litellm.get_model_info(deployment.model, provider)
            if known.get("key") != name:
                continue
            for _ in range(10):
                count = rng.choice((1, 2, 17, rng.randint(1, 900_000)))
                used = Usage(**{what: count}, search_context=size or None)
                cost = pricing.total_usd(used, lambda used, which=deployment: cost_map.get(which, used))
                assert cost == count * usd, (name, unit, count)
                compared[what] = compared.get(what, 0) + 1
    assert all(count >= 50 for count in compared.values()), compared
