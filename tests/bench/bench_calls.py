"""What the host without a plugin does for a request: Python functions of the spine that the proxy calls, by kind of answer.

Unlike a time it is the same on every machine and under every load.

    tox run -e bench -- calls
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from own_calls import REQUESTS, counting, per_request  # beside the tests' helpers
from rig import deployment

from pointsman.testing.provider import UpstreamProcess


def main() -> None:
    """Print the table."""
    table = Table("answer", "calls per request")
    with tempfile.TemporaryDirectory() as folder, UpstreamProcess() as upstream:
        config = {
            "model_list": [
                deployment(upstream.url, "good", "gpt-4o-mini", id_="good-1"),
                deployment(upstream.url, "small", "text-embedding-3-small", id_="small-1"),
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {"store": {"backend": "memory"}, "plugins": []},
        }
        with counting(config, Path(folder) / "proxy") as proxy:
            for name, (path, body) in REQUESTS.items():
                table.add_row(name, str(per_request(proxy, path, body)))
    Console().print(table)


if __name__ == "__main__":
    main()
