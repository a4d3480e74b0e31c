"""The commands as a user at a terminal meets them."""

from __future__ import annotations

from click.testing import CliRunner

from pointsman import client
from pointsman_residency.commands import residency


def test_watching_goes_on_while_the_proxy_is_away_and_ends_calmly(monkeypatch, free_tcp_port):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(client.time, "sleep", sleep)
    url = f"http://127.0.0.1:{free_tcp_port}"
    result = CliRunner().invoke(residency, ["list", "--watch", "--interval", "3", "--url", url, "--key", "sk-1"])
    assert (result.exit_code, waited) == (0, [3.0, 3.0])
    assert result.output.count("cannot reach the proxy") == 2
