# ruff: noqa: INP001 - a script, not a package
"""From the first bad answer to the last canary request, on a real proxy of two workers under traffic.

Run it with ``python plugins/canary/bench/bench_rollback.py``; a round takes most of a minute, nearly all of it the
start of the proxy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from scene import tell  # its directory is put on the path just above


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(argv)
    made = Table(title="A canary of 25 % begins to fail every request; fallback to stable is on", title_justify="left")
    for column in (
        "workers",
        "first bad answer to decision",
        "decision to last canary request",
        "failed canary requests",
        "errors that clients saw",
        "requests afterwards",
    ):
        made.add_column(column, justify="right")
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as directory:
            story = tell(Path(directory))
        made.add_row(
            str(len(story.workers)),
            f"{story.decided_at - story.first_bad_at:.2f} s",
            f"{max(0.0, story.last_canary_at - story.decided_at):.2f} s",
            str(story.canary_requests),
            str(sum(count for status, count in story.statuses.items() if status != 200)),  # noqa: PLR2004  # HTTP
            str(story.after),
        )
    Console(width=150).print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
