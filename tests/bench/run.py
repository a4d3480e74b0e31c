"""Run one benchmark with its arguments, or all of them: ``tox run -e bench [-- NAME [arguments]]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
#: In the order in which all of them run.
SCRIPTS: Final = {
    "calls": "tests/bench/bench_calls.py",
    "spine": "tests/bench/bench_spine.py",
    "executed": "tests/bench/bench_executed.py",
    "guard": "tests/bench/bench_guard.py",
    "quota": "plugins/quota/bench/bench_admission.py",
    "canary": "plugins/canary/bench/bench_canary.py",
    "canary-cost": "plugins/canary/bench/bench_cost.py",
    "canary-rollback": "plugins/canary/bench/bench_rollback.py",
    "signals": "plugins/signals/bench/bench_cost.py",
    "balance": "plugins/balance/bench/bench_cost.py",
    "shadow": "plugins/shadow/bench/bench_cost.py",
    "billing": "plugins/billing/bench/bench_cost.py",
    "shadow-primary": "plugins/shadow/bench/bench_primary.py",
    "racing": "plugins/racing/bench/bench_tail.py",
    "residency": "plugins/residency/bench/bench_cost.py",
    "swaps": "plugins/residency/bench/bench_swaps.py",
    "fleet": "plugins/balance/bench/bench_fleet.py",
    "cost": "tests/bench/bench_cost.py",
}


def main(arguments: list[str]) -> int:
    """Return the exit code: the first that is not 0."""
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in SCRIPTS:
            sys.exit(f"there is no benchmark {name!r}; there are {', '.join(SCRIPTS)}")
        return run(SCRIPTS[name], rest)
    codes = [run(script, arguments if name == "spine" else []) for name, script in SCRIPTS.items()]
    return next((code for code in codes if code), 0)


def run(script: str, arguments: list[str]) -> int:
    """Run a script with this Python; return its exit code."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603  # our own command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
