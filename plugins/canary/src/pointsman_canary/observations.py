"""The observations of one worker since its last flush, and how observations are added up.

The store holds one mailbox per experiment, as JSON: stage to arm to metric to bucket to count. Only the two latest
stages are kept: older ones no longer count.

Requests wait one by one, by their ids, until they are flushed: the same settlement may come again, also to another
worker or after a restart, and the store knows which requests are counted. Scores wait as sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pointsman.store import JSON

    from .experiment import MetricName
    from .metrics import Histogram

#: Arm to metric to bucket to count.
Seen: TypeAlias = dict[str, dict[str, dict[int, int]]]
#: Stage to its observations.
Mail: TypeAlias = dict[str, Seen]

#: Requests of one experiment that wait one by one. Beyond them, after long without the store, the oldest become sums.
MOST_REQUESTS: Final = 20_000

_KEPT_STAGES: Final = 2


@dataclass(frozen=True, slots=True)
class Observation:
    """One request of an arm.

    Attributes:
        tag: The stage that it belongs to.
        arm: The arm.
        second: The Unix second in which it ended, the same whenever it is settled again.
        buckets: Metric to bucket.
    """

    tag: str
    arm: str
    second: int
    buckets: Mapping[MetricName, int]


def add(seen: Seen, arm: str, metric: str, histogram: Histogram) -> None:
    """Add observations of one metric of one arm."""
    counts = seen.setdefault(arm, {}).setdefault(metric, {})
    for bucket, count in histogram.items():
        counts[bucket] = counts.get(bucket, 0) + count


def merge(mail: Mail, more: Mail) -> Mail:
    """Return the sum, without the stages that no longer count."""
    merged: Mail = {}
    for part in (mail, more):
        for tag, seen in part.items():
            into = merged.setdefault(tag, {})
            for arm, metrics in seen.items():
                for metric, histogram in metrics.items():
                    add(into, arm, metric, histogram)
    latest = sorted(merged, key=_order)[-_KEPT_STAGES:]
    return {tag: merged[tag] for tag in latest}


def total(observations: Iterable[Observation]) -> Mail:
    """Return the sum of single requests."""
    mail: Mail = {}
    for each in observations:
        seen = mail.setdefault(each.tag, {})
        for metric, bucket in each.buckets.items():
            add(seen, each.arm, metric, {bucket: 1})
    return mail


def of_earlier_stages(mail: Mail, tag: str) -> Seen:
    """Return the observations of earlier stages of the same run."""
    run = _order(tag)[0]
    earlier: Seen = {}
    for other, seen in mail.items():
        if other != tag and _order(other)[0] == run:
            for arm, metrics in seen.items():
                for metric, histogram in metrics.items():
                    add(earlier, arm, metric, histogram)
    return earlier


def _order(tag: str) -> tuple[int, ...]:
    return tuple(int(part) for part in tag.split("."))


def encode(mail: Mail) -> JSON:
    """Return the mail as JSON."""
    return {
        tag: {
            arm: {
                metric: {str(bucket): count for bucket, count in counts.items()} for metric, counts in metrics.items()
            }
            for arm, metrics in seen.items()
        }
        for tag, seen in mail.items()
    }


class Observer:
    """Collects observations in memory until they are taken; bounded by ``MOST_REQUESTS`` and the number of buckets."""

    def __init__(self) -> None:
        self._mail: dict[str, Mail] = {}
        self._requests: dict[str, dict[str, Observation]] = {}

    def note_request(self, experiment: str, request_id: str, observation: Observation) -> None:
        """Note one request; one that waits already is not noted again."""
        requests = self._requests.setdefault(experiment, {})
        requests.setdefault(request_id, observation)
        if len(requests) > MOST_REQUESTS:
            oldest = requests.pop(next(iter(requests)))
            self.note(experiment, oldest.tag, oldest.arm, oldest.buckets)

    def take_requests(self) -> dict[str, dict[str, Observation]]:
        """Return the requests by experiment and id, and forget them."""
        taken, self._requests = self._requests, {}
        return taken

    def give_back_requests(self, experiment: str, requests: Mapping[str, Observation]) -> None:
        """Put back requests that could not be flushed, before those that came since."""
        newer = self._requests.pop(experiment, {})
        for request_id, observation in (*requests.items(), *newer.items()):
            self.note_request(experiment, request_id, observation)

    def note(self, experiment: str, tag: str, arm: str, buckets: Mapping[MetricName, int]) -> None:
        """Note one observation without a request: metric to bucket."""
        mail = self._mail.setdefault(experiment, {})
        if tag not in mail:
            mail = self._mail[experiment] = merge(mail, {tag: {}})
        if (seen := mail.get(tag)) is not None:
            for metric, bucket in buckets.items():
                add(seen, arm, metric, {bucket: 1})

    def take(self) -> dict[str, Mail]:
        """Return the observations without requests by experiment, and forget them."""
        taken, self._mail = self._mail, {}
        return taken

    def give_back(self, experiment: str, mail: Mail) -> None:
        """Put back observations that could not be flushed."""
        self._mail[experiment] = merge(mail, self._mail.get(experiment, {}))
