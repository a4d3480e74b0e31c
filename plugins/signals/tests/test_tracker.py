"""From attempts to signals."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace

import pytest

from pointsman.types import AttemptKind, ErrorClass, Limit, Outcome, SignalStatus, Usage
from pointsman_signals.health import RECENT, Check

NOW = 1_700_000_000.0
FEW, MANY = (2000, 10_000) if os.environ.get("POINTSMAN_THOROUGH") else (800, 2400)
QUOTA = {
    "x-ratelimit-limit-requests": "100",
    "x-ratelimit-remaining-requests": "90",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "0",
    "x-ratelimit-reset-requests": "6s",
    "x-ratelimit-reset-tokens": "10m0s",
}


def settled(tracker, now):
    """Return the signals after an upkeep, by deployment."""
    return {signal.deployment_id: signal for signal in tracker.refresh({}, now)}


def test_an_answer_makes_its_deployment_available(tracker_of, attempt):
    (signal,) = tracker_of().observe(attempt(), NOW + 0.2)
    assert (signal.deployment_id, signal.status, signal.reason) == ("d1", SignalStatus.AVAILABLE, "")
    assert (signal.recorded_at, signal.last_success_at, signal.last_used_at) == (NOW + 0.2,) * 3
    assert (signal.last_error_at, signal.last_error) == (None, "")


def test_headers_end_in_the_signal_and_tokens_are_gone_for_ten_minutes(tracker_of, attempt):
    tracker = tracker_of()
    (signal,) = tracker.observe(attempt(headers=QUOTA, ms=1000.0), NOW + 1)
    assert signal.status is SignalStatus.EXHAUSTED
    assert signal.until == NOW + 601
    assert signal.limits == (
        Limit(axis="requests", limit=100, remaining=90, resets_at=NOW + 7),
        Limit(axis="tokens", limit=1000, remaining=0, resets_at=NOW + 601),
    )
    assert signal.status_at(NOW + 600) is SignalStatus.EXHAUSTED
    assert signal.status_at(NOW + 601) is SignalStatus.AVAILABLE
    assert settled(tracker, NOW + 600)["d1"].status is SignalStatus.EXHAUSTED
    after = settled(tracker, NOW + 602)["d1"]
    assert after.status is not SignalStatus.EXHAUSTED
    assert [limit.remaining for limit in after.limits] == [100, 1000]


def test_resets_count_from_the_arrival_of_the_headers_not_from_the_end_of_a_long_stream(tracker_of, attempt):
    stream = attempt(headers=QUOTA, first_token_ms=500.0, ms=60_000.0)
    (signal,) = tracker_of().observe(stream, NOW + 60)
    assert {limit.axis: limit.resets_at for limit in signal.limits} == {"requests": NOW + 6.5, "tokens": NOW + 600.5}


def test_a_429_exhausts_until_its_retry_after_and_not_longer(tracker_of, attempt, rate_limited):
    tracker = tracker_of()
    (signal,) = tracker.observe(attempt(**rate_limited, headers={"retry-after": "60"}), NOW)
    assert (signal.status, signal.until) == (SignalStatus.EXHAUSTED, NOW + 60)
    assert settled(tracker, NOW + 59)["d1"].status is SignalStatus.EXHAUSTED
    assert settled(tracker, NOW + 61)["d1"].status is not SignalStatus.EXHAUSTED


def test_the_wait_that_the_gateway_knows_counts_when_the_headers_are_lost(tracker_of, attempt, rate_limited):
    (signal,) = tracker_of().observe(attempt(**rate_limited, retry_after_s=12.0), NOW)
    assert signal.until == NOW + 12


def test_refused_credentials_are_degraded_until_an_answer_comes(tracker_of, attempt):
    tracker = tracker_of()
    (signal,) = tracker.observe(attempt(error=ErrorClass.AUTH), NOW)
    assert (signal.status, signal.reason) == (SignalStatus.DEGRADED, "the provider rejects the credentials")
    assert tracker.observe(attempt(at=NOW + 5), NOW + 6)[0].status is SignalStatus.AVAILABLE


def test_overload_with_a_retry_after_is_degraded_for_that_time(tracker_of, attempt):
    (signal,) = tracker_of().observe(attempt(error=ErrorClass.SERVER, headers={"retry-after": "20"}), NOW)
    assert (signal.status, signal.until) == (SignalStatus.DEGRADED, NOW + 20)


@pytest.mark.parametrize("error", [ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.CONTEXT_WINDOW])
def test_the_callers_faults_do_not_count_against_a_deployment(tracker_of, attempt, error):
    tracker = tracker_of(min_attempts=1)
    for _ in range(20):
        tracker.observe(attempt(error=error), NOW)
    tracker.observe(attempt(at=NOW), NOW)
    signal = settled(tracker, NOW + 1)["d1"]
    assert (signal.status, signal.error_ratio) == (SignalStatus.AVAILABLE, 0.0)
    assert signal.extra[f"error_ratio.{error}"] == pytest.approx(20 / 21)


def test_many_errors_make_a_deployment_degraded_and_few_attempts_do_not(tracker_of, attempt):
    tracker = tracker_of(min_attempts=10, degraded_error_ratio=0.2)
    for number in range(9):
        tracker.observe(attempt(error=ErrorClass.TIMEOUT if number < 2 else None), NOW + number)
    assert settled(tracker, NOW + 9)["d1"].status is SignalStatus.AVAILABLE
    tracker.observe(attempt(), NOW + 10)
    signal = settled(tracker, NOW + 10)["d1"]
    assert (signal.status, signal.reason) == (SignalStatus.DEGRADED, "20% of 10 attempts failed")
    assert signal.error_ratio == 0.2
    assert signal.extra["error_ratio.timeout"] == 0.2


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.DISCONNECTED])
def test_who_leaves_is_no_error_and_no_latency(tracker_of, attempt, outcome):
    tracker = tracker_of()
    tracker.observe(attempt(outcome=outcome), NOW)
    signal = settled(tracker, NOW)["d1"]
    assert (signal.error_ratio, signal.latency_ms, signal.extra["cancelled"]) == (None, None, 1)


def test_an_attempt_that_another_plugin_refused_and_one_from_the_gateways_cache_say_nothing(tracker_of, attempt):
    tracker = tracker_of()
    tracker.observe(attempt(error=ErrorClass.REFUSED, headers=QUOTA), NOW)
    tracker.observe(attempt(cached=True, headers=QUOTA), NOW)
    signal = settled(tracker, NOW)["d1"]
    assert (signal.status, signal.limits, signal.extra["requests"]) == (SignalStatus.UNKNOWN, (), 0)


def test_a_probe_counts_as_an_answer_but_not_as_a_latency(tracker_of, attempt):
    tracker = tracker_of()
    tracker.observe(attempt(kind=AttemptKind.PROBE), NOW)
    signal = settled(tracker, NOW)["d1"]
    assert (signal.status, signal.latency_ms, signal.extra["requests"]) == (SignalStatus.AVAILABLE, None, 1)


def test_speed_leaves_out_the_wait_for_the_first_token(tracker_of, attempt):
    tracker = tracker_of()
    usage = Usage(prompt_tokens=10, completion_tokens=101)
    tracker.observe(attempt(ms=1500.0, first_token_ms=500.0, usage=usage), NOW)
    signal = settled(tracker, NOW)["d1"]
    assert signal.tokens_per_s.p50 == pytest.approx(100.0, rel=0.02)
    assert signal.first_token_ms.p50 == pytest.approx(500.0, rel=0.02)
    assert signal.latency_ms.p50 == pytest.approx(1500.0, rel=0.02)


def test_statistics_of_the_window_are_in_the_signal(tracker_of, attempt):
    tracker = tracker_of(window_s=60)
    usage = Usage(prompt_tokens=100, completion_tokens=10, cached_tokens=80)
    for ms in (100.0, 150.0, 200.0, 120.0, 180.0):
        tracker.observe(attempt(ms=ms, usage=usage, cost_usd_micros=3), NOW)
    extra = settled(tracker, NOW)["d1"].extra
    assert extra["recent_p50_ms"] == 150.0
    assert (extra["requests"], extra["input_tokens"], extra["output_tokens"]) == (5, 500, 50)
    assert (extra["cost_tokens"], extra["cost_usd_micros"]) == (5 * 30, 15)
    assert (extra["cache_hits"], extra["cache_misses"], extra["cache_hit_ratio"]) == (5, 0, 0.8)
    assert settled(tracker, NOW + 61)["d1"].extra["requests"] == 0


def test_the_ring_has_the_latest_samples_only(tracker_of, attempt):
    tracker = tracker_of()
    for number in range(RECENT + 30):
        tracker.observe(attempt(ms=float(number)), NOW)
    recent = tracker.states["d1"].recent
    assert sorted(recent) == [float(number) for number in range(30, RECENT + 30)]


def test_running_attempts_are_counted_once_whatever_happens(tracker_of, attempt):
    tracker = tracker_of()
    one, two = attempt(), attempt()
    assert tracker.begin(one, NOW).in_flight == 1
    assert tracker.begin(one, NOW).in_flight == 1
    assert tracker.begin(two, NOW).in_flight == 2
    assert tracker.observe(one, NOW)[0].in_flight == 1
    assert tracker.observe(one, NOW)[0].in_flight == 1
    assert tracker.observe(replace(two, cached=True), NOW)[0].in_flight == 0


def test_an_attempt_that_never_ended_is_forgotten_in_time(tracker_of, attempt):
    tracker = tracker_of()
    tracker.begin(attempt(), NOW)
    assert settled(tracker, NOW + 3600)["d1"].in_flight == 1
    assert settled(tracker, NOW + 7 * 3600)["d1"].in_flight == 0


def test_knowledge_older_than_the_time_to_live_is_unknown(tracker_of, attempt):
    tracker = tracker_of(ttl_s=300)
    tracker.observe(attempt(), NOW)
    assert settled(tracker, NOW + 299)["d1"].status is SignalStatus.AVAILABLE
    signal = settled(tracker, NOW + 300)["d1"]
    assert (signal.status, signal.reason) == (SignalStatus.UNKNOWN, "no observation for 300 s")


def test_an_exhaustion_outlives_the_time_to_live_when_its_own_end_is_later(tracker_of, attempt, rate_limited):
    tracker = tracker_of(ttl_s=300)
    tracker.observe(attempt(**rate_limited, headers={"retry-after": "3600"}), NOW)
    assert settled(tracker, NOW + 3599)["d1"].status is SignalStatus.EXHAUSTED
    assert settled(tracker, NOW + 3601)["d1"].status is SignalStatus.UNKNOWN


def test_a_failed_check_is_degraded_until_something_better_is_known(tracker_of, attempt, deployment):
    tracker = tracker_of()
    state = tracker.state(deployment(), NOW)
    tracker.checked(state, Check(NOW, ok=False, message="connection refused"), None)
    signal = settled(tracker, NOW + 1)["d1"]
    assert (signal.status, signal.reason) == (SignalStatus.DEGRADED, "check failed: connection refused")
    assert tracker.observe(attempt(at=NOW + 2), NOW + 3)[0].status is SignalStatus.AVAILABLE


def test_an_error_message_is_shown_without_its_secrets_and_soon(tracker_of, attempt):
    tracker = tracker_of()
    (at_once,) = tracker.observe(attempt(error=ErrorClass.AUTH, message="bad key sk-abcdefghijklmnop"), NOW)
    assert at_once.last_error == ""
    signal = settled(tracker, NOW + 1)["d1"]
    assert (signal.last_error, signal.last_error_at) == ("bad key ***", NOW)


def test_weight_capacity_account_and_activity_are_in_the_signal(tracker_of, attempt, deployment):
    tracker = tracker_of()
    one = deployment(weight=3.0, rpm=500, info={"account": "team-a"})
    (signal,) = tracker.observe(attempt(one), NOW)
    assert (signal.weight, signal.capacity, signal.account, signal.active) == (3.0, 500.0, "team-a", True)
    tracker.adopt([deployment("d2", info={"capacity": 7})], NOW + 1)
    signals = settled(tracker, NOW + 1)
    assert (signals["d1"].active, signals["d2"].active, signals["d2"].capacity) == (False, True, 7.0)
    assert signals["d2"].status is SignalStatus.UNKNOWN


def test_a_deployment_that_is_configured_again_keeps_what_is_known(tracker_of, attempt, deployment):
    tracker = tracker_of()
    tracker.observe(attempt(deployment(weight=1.0), headers=QUOTA), NOW)
    (signal,) = tracker.observe(attempt(deployment(weight=9.0)), NOW + 1)
    assert (signal.weight, signal.status) == (9.0, SignalStatus.EXHAUSTED)


def test_upkeep_replaces_only_signals_that_have_changed(tracker_of, attempt):
    tracker = tracker_of()
    tracker.observe(attempt(), NOW)
    current = settled(tracker, NOW + 1)
    assert tracker.refresh(current, NOW + 2) == []
    assert [s.status for s in tracker.refresh(current, NOW + 400)] == [SignalStatus.UNKNOWN]


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_deployments_of_one_account_and_model_share_their_quota(tracker_of, attempt, deployment):
    tracker = tracker_of(accounts={"main": ("chat", "d3")})
    one, two = deployment("d1"), deployment("d2")
    other_group, other_model = deployment("d3", group="x"), deployment("d4", model="other")
    stranger = deployment("d5", group="y")
    for each in (one, two, other_group, other_model, stranger):
        tracker.observe(attempt(each), NOW)
    signals = tracker.observe(attempt(one, headers=QUOTA), NOW + 1)
    assert signals[0].deployment_id == "d1"
    assert {s.deployment_id: s.status for s in signals} == dict.fromkeys(("d1", "d2", "d3"), SignalStatus.EXHAUSTED)
    later = settled(tracker, NOW + 2)
    assert {later[one].status for one in ("d4", "d5")} == {SignalStatus.AVAILABLE}


def test_a_provider_that_counts_per_account_shares_across_models(tracker_of, attempt, deployment):
    tracker = tracker_of(accounts={"main": ("chat",)})
    one, two = deployment("d1", provider="openrouter"), deployment("d2", provider="openrouter", model="other")
    tracker.observe(attempt(two), NOW)
    headers = {"x-ratelimit-limit": "50", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{NOW + 60:.0f}000"}
    signals = tracker.observe(attempt(one, headers=headers), NOW)
    assert {s.deployment_id for s in signals if s.status is SignalStatus.EXHAUSTED} == {"d1", "d2"}


def test_a_deployment_that_leaves_an_account_takes_its_knowledge_along(tracker_of, attempt, deployment):
    tracker = tracker_of()
    inside, outside = deployment(info={"account": "a"}), deployment()
    tracker.observe(attempt(inside, headers=QUOTA), NOW)
    tracker.observe(attempt(deployment("d2", info={"account": "a"})), NOW)
    assert tracker.observe(attempt(outside), NOW + 1)[0].status is SignalStatus.EXHAUSTED
    assert tracker.states["d1"].quota is not tracker.states["d2"].quota
    assert tracker.states["d1"].siblings is None


def test_undeclared_accounts_are_grouped_by_provider_and_host(tracker_of, deployment):
    tracker = tracker_of(accounts={"main": ("d1",)})
    for each in (
        deployment("d1"),
        deployment("d2"),
        deployment("d3", api_base="https://user:pw@eu.example:8443/v1"),
        deployment("d4", api_base="http://[::1"),
    ):
        tracker.state(each, NOW)
    grouped = {key: [state.id for state in states] for key, states in tracker.accounts().items()}
    assert grouped == {
        ("main", True): ["d1"],
        ("openai", False): ["d2", "d4"],
        ("openai@eu.example:8443", False): ["d3"],
    }


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_the_longest_unseen_deployments_are_forgotten_first(tracker_of, attempt, deployment):
    tracker = tracker_of(max_deployments=10)
    for number in range(25):
        tracker.observe(attempt(deployment(f"d{number}"), at=NOW + number), NOW + number)
        assert len(tracker.states) <= 10
    assert "d24" in tracker.states
    assert "d0" not in tracker.states
    assert tracker.forgotten == 25 - len(tracker.states)


def test_a_deployment_that_the_configuration_no_longer_has_is_forgotten_in_time(tracker_of, attempt, deployment):
    tracker = tracker_of(ttl_s=300, window_s=300)
    tracker.observe(attempt(), NOW)
    tracker.adopt([deployment("d2")], NOW + 299)
    assert set(tracker.states) == {"d1", "d2"}
    tracker.adopt([deployment("d2")], NOW + 301)
    assert set(tracker.states) == {"d2"}


def test_an_empty_configuration_is_no_configuration(tracker_of, attempt):
    tracker = tracker_of()
    tracker.observe(attempt(), NOW)
    tracker.adopt([], NOW + 9999)
    assert tracker.states["d1"].active


@pytest.mark.thorough
def test_memory_is_bounded_with_thousands_of_deployments_seen(tracker_of, attempt, deployment):
    tracker = tracker_of(max_deployments=300)

    def see(first, last):
        for number in range(first, last):
            headers = {f"x-ratelimit-remaining-axis{number % 7}-{letter}": f"{number}" for letter in "abc"}
            one = deployment(f"d{number}", info={"account": f"a{number % 50}"}, api_base=f"https://h{number}.example")
            for ms in (0.1, 50.0, 1e5):
                tracker.observe(attempt(one, headers=headers, ms=ms, at=NOW + number), NOW + number)
            if number % 200 == 0:
                tracker.refresh({}, NOW + number)
        gc.collect()
        return len(gc.get_objects())

    few = see(0, FEW)
    many = see(FEW, MANY)
    assert many < few * 1.1
    assert len(tracker.states) <= 300
    assert len(tracker._summaries) <= 300
    assert len(tracker._changed) <= 300
    assert len(tracker._quotas) <= 50


def test_memory_is_bounded_for_one_deployment_with_much_traffic(tracker_of, attempt):
    tracker = tracker_of(window_s=60)

    def see(first, last):
        for number in range(first, last):
            tracker.observe(attempt(ms=1.003**number, at=NOW + number, error=None), NOW + number)
        tracker.refresh({}, NOW + last)
        return sys.getsizeof(json.dumps(tracker.states["d1"].delta.to_json())) + len(tracker.states["d1"].recent)

    few, many = see(0, 2000), see(2000, 6000)
    assert many < few * 1.2
