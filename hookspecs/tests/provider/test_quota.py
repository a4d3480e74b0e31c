from __future__ import annotations

from types import SimpleNamespace

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing.provider import Behaviour, Limits, UpstreamServer, count_tokens
from pointsman.testing.provider.quota import Bucket, Quota, format_time

HELLO = [{"role": "user", "content": "Hello there"}]
PROMPT = count_tokens("Hello there")
START = 1_800_000_000.0  # 2027-01-15T08:00:00Z


@pytest.fixture
def clock():
    return SimpleNamespace(at=START)


@pytest.fixture
def limited(clock):
    limits = Limits(requests=4, tokens=1000, input_tokens=500, output_tokens=400, window_s=60)
    with UpstreamServer({"*": Behaviour(limits=limits, tokens=10)}, now=lambda: clock.at) as server:
        yield server


def chat(client):
    return client.chat.completions.with_raw_response.create(model="m", messages=HELLO).headers


def test_openai_headers_count_down_and_reset(limited, clock):
    with openai.OpenAI(base_url=limited.url, api_key="k", max_retries=0) as client:
        headers = chat(client)
        assert headers["x-ratelimit-limit-requests"] == "4"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert headers["x-ratelimit-remaining-requests"] == "3"
        assert headers["x-ratelimit-remaining-tokens"] == str(1000 - PROMPT - 10)
        assert headers["x-ratelimit-reset-requests"] == "15s"
        assert headers["x-ratelimit-reset-tokens"] == "840ms"
        assert headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
        assert [chat(client)["x-ratelimit-remaining-requests"] for _ in range(3)] == ["2", "1", "0"]
        with pytest.raises(openai.RateLimitError) as refused:
            chat(client)
        assert refused.value.body["code"] == "rate_limit_exceeded"
        assert refused.value.response.headers["retry-after"] == "15"
        assert refused.value.response.headers["retry-after-ms"] == "15000"
        assert refused.value.response.headers["x-ratelimit-reset-requests"] == "1m0s"
        clock.at += 15
        assert chat(client)["x-ratelimit-remaining-requests"] == "0"
        clock.at += 3600
        assert chat(client)["x-ratelimit-remaining-requests"] == "3"


def test_anthropic_headers_count_down_in_four_limits(limited, clock):
    with anthropic.Anthropic(base_url=limited.url, api_key="k", max_retries=0) as client:
        request = {"model": "m", "max_tokens": 100, "messages": HELLO}
        headers = client.messages.with_raw_response.create(**request).headers
        assert headers["anthropic-ratelimit-requests-limit"] == "4"
        assert headers["anthropic-ratelimit-requests-remaining"] == "3"
        assert headers["anthropic-ratelimit-requests-reset"] == "2027-01-15T08:00:15Z"
        assert headers["anthropic-ratelimit-tokens-remaining"] == str(1000 - PROMPT - 10)
        assert headers["anthropic-ratelimit-input-tokens-remaining"] == str(500 - PROMPT)
        assert headers["anthropic-ratelimit-output-tokens-remaining"] == "390"
        for _ in range(3):
            client.messages.create(**request)
        with pytest.raises(anthropic.RateLimitError) as refused:
            client.messages.create(**request)
        assert refused.value.response.headers["retry-after"] == "15"
        assert "retry-after-ms" not in refused.value.response.headers


def test_azure_headers_are_plain_milliseconds(limited):
    path = "/openai/deployments/d/chat/completions"
    headers = httpx.post(limited.url + path, json={"messages": HELLO}, trust_env=False).headers
    assert headers["x-ratelimit-reset-requests"] == "15000"
    assert headers["x-ratelimit-reset-tokens"] == "840"
    assert headers["x-ratelimit-renewalperiod-requests"] == "60"


def test_models_have_limits_of_their_own_and_failures_cost_nothing(limited):
    with httpx.Client(base_url=limited.url, trust_env=False) as http:
        left = [
            http.post("/chat/completions", json=body).headers["x-ratelimit-remaining-requests"]
            for body in (
                {"model": "a", "messages": HELLO},
                {"model": "b", "messages": HELLO},
                {"model": "a", "messages": HELLO, "stream": True},
            )
        ]
        assert left == ["3", "3", "2"]
        limited.behave("a", Behaviour(error_ratios={500: 1}, limits=Limits(requests=4)))
        failed = http.post("/chat/completions", json={"model": "a", "messages": HELLO})
        assert failed.headers["x-ratelimit-remaining-requests"] == "4"


def test_token_limit_names_tokens(limited):
    limited.behave("m", Behaviour(tokens=10, limits=Limits(tokens=20)))
    answers = [
        httpx.post(f"{limited.url}/chat/completions", json={"model": "m", "messages": HELLO}, trust_env=False)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["error"]["type"] == "tokens"


@given(
    limit=st.integers(1, 10**9),
    window_s=st.floats(0.1, 1e5),
    steps=st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 10**6)), max_size=20),
)
def test_bucket_never_gives_more_than_was_filled_in(limit, window_s, steps):
    """What is taken, when only what is there is taken, never exceeds the limit plus what time has added."""
    bucket, now, taken = Bucket(limit, window_s, START), START, 0
    for gap_s, amount in steps:
        now += gap_s
        if bucket.wait_s(amount, now) == 0 and amount <= limit:
            bucket.take(amount, now)
            taken += amount
        assert bucket.level(now) <= limit
        assert taken <= (limit + (now - START) * limit / window_s) * (1 + 1e-6) + 1e-6


@given(limit=st.integers(1, 10**6), amount=st.integers(1, 10**6), window_s=st.floats(0.1, 1e4))
def test_after_the_announced_wait_there_is_enough(limit, amount, window_s):
    bucket = Bucket(limit, window_s, START)
    bucket.take(limit, START)
    wait_s = bucket.wait_s(amount, START)
    rounding = limit / window_s * 1e-6  # Unix seconds in a float are exact to less than a microsecond
    assert bucket.level(START + wait_s) >= min(amount, limit) * (1 - 1e-3) - 1e-3 - rounding
    assert bucket.level(START + bucket.reset_s(START) + 1) == limit


def test_clock_going_back_adds_nothing():
    bucket = Bucket(10, 60, START)
    bucket.take(10, START)
    assert bucket.level(START - 1000) == 0


def test_request_larger_than_the_limit_is_let_through_a_full_bucket():
    quota = Quota(Limits(tokens=100), START)
    assert quota.charge(500, 0, START) is None
    assert quota.charge(1, 0, START).limit == "tokens"


def test_times_are_written_as_anthropic_does():
    assert format_time(START + 0.2) == "2027-01-15T08:00:01Z"
