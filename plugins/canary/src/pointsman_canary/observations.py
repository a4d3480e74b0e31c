"""What one worker has seen since it last handed in, and how such observations are added up.

In the store they lie in one mailbox per experiment, as JSON: stage to arm to metric to bucket to count. Only the two
latest stages are kept: what is older does not count any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pointsman.store.base import JSON

    from .experiment import MetricName
    from .metrics import Histogram

#: Arm to metric to bucket to count.
Seen: TypeAlias = dict[str, dict[str, dict[int, int]]]
#: Stage to what was seen in it.
Mail: TypeAlias = dict[str, Seen]

_KEPT_STAGES: Final = 2


def add(seen: Seen, arm: str, metric: str, histogram: Histogram) -> None:
    """Add observations of one metric of one arm."""
    counts = seen.setdefault(arm, {}).setdefault(metric, {})
    for bucket, count in histogram.items():
        counts[bucket] = counts.get(bucket, 0) + count


def merge(mail: Mail, more: Mail) -> Mail:
    """Return both together, without the stages that do not count any more."""
    merged: Mail = {}
    for part in (mail, more):
        for tag, seen in part.items():
            into = merged.setdefault(tag, {})
            for arm, metrics in seen.items():
                for metric, histogram in metrics.items():
                    add(into, arm, metric, histogram)
    latest = sorted(merged, key=_order)[-_KEPT_STAGES:]
    return {tag: merged[tag] for tag in latest}


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
    """Collects observations in memory until they are taken; bounded by the number of buckets."""

    def __init__(self) -> None:
        self._mail: dict[str, Mail] = {}

    def note(self, experiment: str, tag: str, arm: str, buckets: Mapping[MetricName, int]) -> None:
        """Note one request: metric to bucket."""
        mail = self._mail.setdefault(experiment, {})
        if tag not in mail:
            mail = self._mail[experiment] = merge(mail, {tag: {}})
        if (seen := mail.get(tag)) is not None:
            for metric, bucket in buckets.items():
                add(seen, arm, metric, {bucket: 1})

    def take(self) -> dict[str, Mail]:
        """Return what there is, by experiment, and forget it."""
        taken, self._mail = self._mail, {}
        return taken

    def give_back(self, experiment: str, mail: Mail) -> None:
        """Put something back that could not be handed in."""
        self._mail[experiment] = merge(mail, self._mail.get(experiment, {}))
