from __future__ import annotations

import pytest
from pydantic import ValidationError

from pointsman_canary.config import CanaryConfig
from pointsman_canary.experiment import Experiment, Metric, PlannedStep

ROLLOUT = {"name": "x", "model": "chat", "canary": "chat-v2"}


def experiment(**fields) -> Experiment:
    return Experiment.model_validate({**ROLLOUT, **fields})


def weights(made: Experiment) -> list[float]:
    return [step.weight_bp / 100 for step in made.plan()]


def test_default_plan_is_5_25_50_100():
    assert weights(experiment()) == [5, 25, 50, 100]
    assert experiment().failing == "rollback"


def test_ramp_is_initial_step_and_maximum():
    """The example of ten percent steps up to a half: .1 .2 .3 .4 .5 and no further."""
    ramp = {"initial_percent": 10, "step_percent": 10, "max_percent": 50}
    assert weights(experiment(ramp=ramp)) == [10, 20, 30, 40, 50]
    assert weights(experiment(ramp={**ramp, "step_percent": 30, "max_percent": 100})) == [10, 40, 70, 100]


def test_pause_waits_after_the_step_before_it():
    assert experiment(steps=[1, "pause", 50]).plan() == (PlannedStep(100, waits=True), PlannedStep(5000))


def test_plain_ab_has_no_plan_and_only_reports():
    made = Experiment.model_validate(
        {
            "name": "ab",
            "model": "chat",
            "arms": {"b": {"target": "b", "percent": 20}, "c": {"target": "c", "percent": 30}},
        }
    )
    assert made.plan() == ()
    assert made.failing == "report"
    assert list(made.targets) == ["b", "c"]


def test_metrics_have_defaults_by_kind():
    metrics = {m.metric: m for m in experiment(metrics=["error_rate", {"metric": "latency_ms"}, "score"]).metrics}
    assert (metrics["error_rate"].statistic, metrics["error_rate"].tolerance) == ("mean", 0.0)
    assert (metrics["latency_ms"].statistic, metrics["latency_ms"].margin) == ("p90", 0.25)
    assert Metric(metric="latency_ms", tolerance=0.5).margin == 0.5
    assert Metric(metric="latency_ms", statistic="p5").quantile == 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../etc"}, "pattern"),
        ({"name": ""}, "pattern"),
        ({"name": "x" * 65}, "pattern"),
        ({"canary": None}, "either 'canary' .* or 'arms'"),
        ({"arms": {"b": {"target": "b", "percent": 1}}}, "either 'canary' .* or 'arms'"),
        ({"canary": None, "arms": {}}, "at least one arm"),
        ({"canary": None, "arms": {"stable": {"target": "b", "percent": 1}}}, "'stable' is not an arm here"),
        ({"canary": None, "arms": {"b": {"target": "b", "percent": 60}, "c": {"target": "c", "percent": 41}}}, "100"),
        ({"canary": None, "arms": {"b": {"target": "b", "percent": 1}}, "steps": [1]}, "belong to a rollout"),
        ({"canary": None, "arms": {"b": {"target": "b", "percent": float("nan")}}}, "finite|greater"),
        ({"stable": "chat-v2"}, "different targets"),
        ({"stable": {"version": "7"}, "canary": {"version": "7"}}, "different targets"),
        ({"canary": "chat"}, "where stable goes"),
        ({"steps": [5, 5]}, "must increase"),
        ({"steps": [5, 1]}, "must increase"),
        ({"steps": [0, 5]}, "greater than 0"),
        ({"steps": [5, 101]}, "less than or equal to 100"),
        ({"steps": [-5]}, "greater than 0"),
        ({"steps": [float("nan")]}, "finite|greater"),
        ({"steps": [float("inf")]}, "finite|less"),
        ({"steps": [0.001]}, "finer than 0.01"),
        ({"steps": []}, "begin with a weight"),
        ({"steps": ["pause", 5]}, "begin with a weight"),
        ({"steps": [5, "pause", "pause"]}, "two pauses"),
        ({"steps": [5, 100, "pause"]}, "after 100 % has no effect"),
        ({"steps": [1], "ramp": {"initial_percent": 1, "step_percent": 1}}, "either 'steps' or 'ramp'"),
        ({"ramp": {"initial_percent": 60, "step_percent": 1, "max_percent": 50}}, "above max_percent"),
        ({"ramp": {"initial_percent": 0.01, "step_percent": 0.01}}, "too long"),
        ({"unit": "mood"}, "not allowed"),
        ({"unit": "header:"}, "not allowed"),
        ({"unit": "header:authorization"}, "credentials"),
        ({"filter": {"headers": {"Authorization": "x"}}}, "credentials"),
        ({"interval_s": 0}, "greater than 0"),
        ({"interval_s": float("nan")}, "finite|greater"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": 1}, "less than 1"),
        ({"min_samples": 0}, "greater than or equal to 1"),
        ({"metrics": []}, "at least 1"),
        ({"metrics": ["error_rate", "error_rate"]}, "listed twice"),
        ({"metrics": [{"metric": "error_rate", "required": False}]}, "must be required"),
        ({"metrics": ["happiness"]}, "error_rate"),
        ({"metrics": [{"metric": "error_rate", "statistic": "p90"}]}, "does not apply"),
        ({"metrics": [{"metric": "latency_ms", "statistic": "p0"}]}, "pattern"),
        ({"metrics": [{"metric": "latency_ms", "statistic": "p100"}]}, "pattern"),
        ({"metrics": [{"metric": "latency_ms", "tolerance": 0.3, "margin": 0.2}]}, "below tolerance"),
        ({"weight": 5}, "[Ee]xtra"),
    ],
)
def test_bad_definition_is_refused_with_the_reason(fields, message):
    with pytest.raises(ValidationError, match=message):
        experiment(**fields)


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ([ROLLOUT, {**ROLLOUT, "model": "other"}], "'x' is used twice"),
        ([ROLLOUT, {**ROLLOUT, "name": "y"}], "'y' and 'x' have the same model and filter"),
        ([{**ROLLOUT, "gates": {"before_step": "ci"}}], "no webhook 'ci'"),
    ],
)
def test_experiments_that_contradict_one_another_stop_the_start(experiments, message):
    with pytest.raises(ValidationError, match=message):
        CanaryConfig.model_validate({"experiments": experiments})


def test_same_model_with_another_filter_is_another_experiment():
    config = CanaryConfig.model_validate(
        {"experiments": [{**ROLLOUT, "filter": {"tenant": "a"}}, {**ROLLOUT, "name": "y"}]}
    )
    assert [each.name for each in config.experiments] == ["x", "y"]


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "x"])
def test_webhook_is_http(url):
    with pytest.raises(ValidationError, match="http"):
        CanaryConfig.model_validate({"webhooks": {"ci": {"url": url}}})


def test_secrets_of_a_webhook_are_not_shown():
    config = CanaryConfig.model_validate({"webhooks": {"ci": {"url": "http://x", "headers": {"token": "hush"}}}})
    assert "hush" not in repr(config)
