"""``pointsman residency ...``: what is in memory, and load, evict, pin, on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from pointsman.client import AdminClient, admin_options, repeat, segment, table

if TYPE_CHECKING:
    from rich.table import Table

pool_option: Final = click.option("--pool", help="The pool, where several have a model of this name.")
reason_option: Final = click.option("--reason", default="", help="For the trace.")

_UNITS: Final = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@click.group()
def residency() -> None:
    """See and change which local models are in memory."""


@residency.command("list")
@click.option("--pool", help="Only this pool.")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two refreshes.",
)
@admin_options
def list_models(admin: AdminClient, *, pool: str | None, watch: bool, interval: float) -> None:
    """Show the pools and their models, the most recently used first."""

    def show() -> None:
        answer = admin.get("/residency", pool=pool)
        admin.show(answer, lambda: _pools(answer["pools"]), lambda: _models(_all(answer["pools"])))
        if not admin.as_json:
            for problem in answer["problems"]:
                click.echo(problem, err=True)

    if watch:
        repeat(show, interval)
    else:
        show()


@residency.command("load")
@click.argument("model")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    default=0.0,
    help="Longest wait until the model is resident, in seconds.",
)
@pool_option
@reason_option
@admin_options
def load(admin: AdminClient, model: str, *, wait_s: float, pool: str | None, reason: str) -> None:
    """Load a MODEL, or mark it as just used."""
    _act(admin, "POST", model, "load", {"reason": reason}, pool=pool, wait_s=wait_s or None)


@residency.command("evict")
@click.argument("model")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    help="Seconds that requests in flight may take to end; 30 by default.",
)
@click.option("--force", is_flag=True, help="Cancel the requests in flight.")
@pool_option
@reason_option
@admin_options
def evict(admin: AdminClient, model: str, *, wait_s: float | None, force: bool, pool: str | None, reason: str) -> None:
    """Unload a MODEL when its requests have ended."""
    _act(admin, "POST", model, "evict", {"reason": reason}, pool=pool, wait_s=wait_s, force=force or None)


@residency.command("pin")
@click.argument("model")
@pool_option
@admin_options
def pin(admin: AdminClient, model: str, *, pool: str | None) -> None:
    """Never evict a MODEL."""
    _act(admin, "POST", model, "pin", None, pool=pool)


@residency.command("unpin")
@click.argument("model")
@pool_option
@admin_options
def unpin(admin: AdminClient, model: str, *, pool: str | None) -> None:
    """Let a MODEL be evicted again."""
    _act(admin, "DELETE", model, "pin", None, pool=pool)


def _act(
    admin: AdminClient,
    method: str,
    model: str,
    action: str,
    body: dict[str, object] | None,
    **params: str | float | bool | None,
) -> None:
    answer = admin.request(method, f"/residency/{segment(model)}/{action}", params=params, body=body)
    admin.show(answer, lambda: _models([answer]))


def _all(pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [model for pool in pools for model in pool["models"]]


def _pools(pools: list[dict[str, Any]]) -> Table:
    return table(
        [
            "pool",
            "device",
            "budget",
            "used",
            "others",
            "resident",
            "loads",
            "evictions",
            "waits",
            "too late",
            "repaired",
        ],
        [
            (
                pool["pool"],
                device,
                _size(budget),
                _size(pool["stats"]["used"].get(device, 0)),
                _size(pool["stats"]["foreign"].get(device, 0)),
                pool["stats"]["count"],
                pool["stats"]["loads"],
                pool["stats"]["evictions"],
                pool["stats"]["waits"],
                pool["stats"]["expired"],
                pool["stats"]["drifts"],
            )
            for pool in pools
            for device, budget in pool["budget"].items()
        ],
    )


def _models(models: list[dict[str, Any]]) -> Table:
    return table(
        ["model", "pool", "state", "memory", "pinned", "in flight", "waiting", "requests/s", "load s", "loads", "why"],
        [
            (
                model["model"],
                model["pool"],
                model["state"],
                _size(sum((model["bytes"] or model["expected_bytes"] or {}).values())),
                model["pinned"],
                model["in_flight"],
                model["waiting"],
                model["requests_per_s"],
                model["load_s"],
                model["loads"],
                model["error"] or model["blocked"],
            )
            for model in models
        ],
    )


def _size(size: int) -> str:
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B" if size else "-"
