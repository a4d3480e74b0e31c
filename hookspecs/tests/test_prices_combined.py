"""Prices by service tier, size of the prompt, cache and modality at once: those that LiteLLM itself charges.

LiteLLM's calculation is asked about every model of its cost map that has such prices, in every combination. Two rules of
providers are not in that function: batches, and Anthropic's fast mode. Where the map has no price of a tier for all of a
prompt or of an answer, LiteLLM charges the usual one; what it costs is unknown then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pointsman import pricing
from pointsman.types import Deployment, Usage

TIERS = ("flex", "priority", "balanced", "ultrafast")
ENDINGS = tuple(f"_{tier}" for tier in TIERS)
#: Shares of the prompt, and of an answer of 100 tokens that is reasoning.
COMBINATIONS: dict[str, tuple[int, ...]] = {
    # name: cached, written, of that for an hour, audio, image, video, reasoning; in percent
    "text": (0, 0, 0, 0, 0, 0, 0),
    "cached": (50, 0, 0, 0, 0, 0, 0),
    "written": (0, 30, 20, 0, 0, 0, 0),
    "audio": (0, 0, 0, 25, 0, 0, 0),
    "seen": (0, 0, 0, 0, 20, 20, 50),
    "all": (25, 10, 0, 20, 10, 10, 50),
}
#: The prices of a prompt and of an answer.
WHOLE = ("input_cost_per_token", "output_cost_per_token")
#: LiteLLM computes in binary floating point.
RELATIVE = 1e-9

# LiteLLM imports some providers when a price of theirs is asked for, and pydantic warns about their types.
pytestmark = [pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"), pytest.mark.timeout(300)]


@pytest.fixture
def prices() -> Any:
    return pytest.importorskip("pointsman.litellm.prices")


def models(prices: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the models that have prices for tiers or sizes, one of each kind of entry."""
    litellm = prices.litellm
    seen = set()
    for name, entry in sorted(litellm.model_cost.items()):
        combined = any("_above_" in key or key.endswith(ENDINGS) for key in entry)
        if not combined or entry.get("mode") not in {"chat", "responses", "completion"}:
            continue
        kind = (entry["litellm_provider"], *sorted((k, str(v)) for k, v in entry.items() if "cost" in k))
        model = name.removeprefix(f"{entry['litellm_provider']}/")
        if kind not in seen and litellm.get_model_info(model, entry["litellm_provider"])["key"] == name:
            seen.add(kind)
            yield model, entry["litellm_provider"], entry


def sizes(prices: Any, entry: Mapping[str, Any]) -> list[int]:
    found = {1000}
    for name in entry:
        if match := prices._ABOVE.search(name):  # how thresholds are written is in one place
            threshold = int(match[1]) * (1000 if match[2] else 1)
            found |= {threshold, threshold + 1}
    return sorted(found)


def has_own(prices: Any, entry: Mapping[str, Any], key: str, size: int, tier: str | None) -> bool:
    """Return whether a tier has a price of its own wherever there is another one: at all, and for a prompt of this size."""
    if tier not in TIERS:
        return True
    passed = {""}
    for name in entry:
        match = prices._ABOVE.search(name)  # as above
        if match and int(match[1]) * (1000 if match[2] else 1) < size:
            passed.add(match[0])
    return all(not entry.get(key + step) or entry.get(f"{key}{step}_{tier}") is not None for step in passed)


def counted(size: int, shares: tuple[int, ...]) -> dict[str, int]:
    cached, written, hour, audio, image, video, _ = (size * share // 100 for share in shares)
    return {
        "cached": cached,
        "written": written,
        "hour": hour,
        "audio": audio,
        "image": image,
        "video": video,
        "reasoning": shares[-1],
    }


def litellms(litellm: Any, size: int, parts: Mapping[str, int]) -> Any:
    prompt: dict[str, Any] = {
        "cached_tokens": parts["cached"],
        "cache_creation_tokens": parts["written"],
        "audio_tokens": parts["audio"],
        "image_tokens": parts["image"],
        "video_tokens": parts["video"],
        "text_tokens": size - sum(parts[name] for name in ("cached", "written", "audio", "image", "video")),
    }
    if parts["hour"]:
        hour, minutes = parts["hour"], parts["written"] - parts["hour"]
        prompt["cache_creation_token_details"] = {
            "ephemeral_1h_input_tokens": hour,
            "ephemeral_5m_input_tokens": minutes,
        }
    return litellm.Usage(
        prompt_tokens=size,
        completion_tokens=100,
        total_tokens=size + 100,
        prompt_tokens_details=prompt,
        completion_tokens_details={
            "reasoning_tokens": parts["reasoning"],
            "text_tokens": 100 - parts["reasoning"],
        },
        cache_read_input_tokens=parts["cached"],
        cache_creation_input_tokens=parts["written"],
    )


def ours(size: int, tier: str | None, parts: Mapping[str, int]) -> Usage:
    return Usage(
        prompt_tokens=size,
        completion_tokens=100,
        cached_tokens=parts["cached"],
        cache_write_tokens=parts["written"],
        cache_write_1h_tokens=parts["hour"],
        audio_prompt_tokens=parts["audio"],
        image_prompt_tokens=parts["image"],
        video_prompt_tokens=parts["video"],
        reasoning_tokens=parts["reasoning"],
        service_tier=tier,
    )


def test_every_combination_costs_what_litellm_charges(prices: Any) -> None:
    litellm, calculation = prices.litellm, prices.calculation
    cost_map = prices.CostMap()
    wrong, compared, unknown, gemini_above = [], 0, 0, 0
    for model, provider, entry in models(prices):
        deployment = Deployment(id="d", group="g", provider=provider, model=model)
        if entry.get("input_cost_per_token") is None:
            # LiteLLM charges nothing where a model has prices only for some tiers; here it is unpriced.
            assert cost_map.get(deployment).input_usd is None
            continue
        tiers = (None, "default", *(tier for tier in TIERS if any(key.endswith(f"_{tier}") for key in entry)))
        for size in sizes(prices, entry):
            for name, shares in COMBINATIONS.items():
                parts = counted(size, shares)
                usage = litellms(litellm, size, parts)
                for tier in tiers:
                    theirs = sum(
                        calculation.generic_cost_per_token(
                            model=model, usage=usage, custom_llm_provider=provider, service_tier=tier
                        )
                    )
                    cost = pricing.total_usd(
                        ours(size, tier, parts), lambda used, which=deployment: cost_map.get(which, used)
                    )
                    compared += 1
                    if not all(has_own(prices, entry, key, size, tier) for key in WHOLE):
                        unknown += 1
                        if cost is not None:
                            wrong.append((model, size, name, tier, cost, None))
                        continue
                    gemini_above += provider == "gemini" and size > 200_000 and tier in {"flex", "priority"}
                    if cost is None or abs(float(cost) - theirs) > RELATIVE * theirs:
                        wrong.append((model, size, name, tier, cost, theirs))
    assert not wrong, wrong[:5]
    assert compared > 1000
    assert 0 < unknown < compared / 10
    assert gemini_above > 0
