from __future__ import annotations

import pytest
from scene import tell

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]


@pytest.mark.parametrize("versions", [False, True], ids=["groups", "versions"])
def test_bad_canary_is_left_by_every_worker_and_no_client_notices(tmp_path, versions):
    """Two real workers under traffic: the canary's model fails, it is rolled back, stable answers throughout.

    How long it takes is measured by ``bench_rollback``.
    """
    if versions:
        pytest.importorskip("pointsman_registry", reason="pointsman-registry is not installed")
    story = tell(tmp_path, versions=versions)
    assert set(story.statuses) == {200}
    assert len(story.workers) == 2
    assert all(requests > 0 for requests in story.workers.values())
    assert story.arms["canary"] > 0
    assert story.arms["none"] == 0
    assert [entry["what"] for entry in story.trail] == ["create", "step", "rollback"]
    assert "error_rate" in story.trail[-1]["reason"]
    assert story.trail[-1]["findings"]["canary"][0]["verdict"] == "fail"
    assert story.shown["weights_percent"] == {"canary": 0}
    assert story.first_bad_at < story.decided_at
    # A canary of 25 % would hardly have been missed by as many requests by chance.
    assert story.quiet_after > 30
