"""The plugin: hooks, wired to the modules that do the work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal

from pydantic import Field

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.plugin import OnFailure
from pointsman.types import Attempt, RequestContext, Status

from .redaction import PATTERNS, Vault, mapped
from .streams import Restorer

#: Requests whose placeholders are remembered; each is forgotten when its answer is out.
_MOST_REQUESTS: Final = 100_000


class RedactionConfig(PluginConfig):
    """What is replaced."""

    on_failure: OnFailure = Field(
        default="deny", description="By default nothing is sent or shown that could not be redacted or restored."
    )
    kinds: tuple[Literal["email", "phone", "card"], ...] = Field(
        default=("email", "phone", "card"), description="Kinds of personal data that are replaced; all by default."
    )


class Redaction:
    """Replaces personal data by placeholders on its way to a provider, and puts it back on its way to the client.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: RedactionConfig) -> None:
        self._kinds = config.kinds
        self._vaults: dict[str, Vault] = {}
        self._replaced = 0

    @hookimpl
    async def transform_request(
        self, ctx: RequestContext, attempt: Attempt, body: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Replace. Attempts of one request share their placeholders."""
        vault = self._vaults.get(attempt.request_id)
        if vault is None:
            vault = Vault(self._kinds)
        redacted: Mapping[str, Any] = mapped(body, vault.redact)
        if not vault.values:
            return None
        # A call of our own has no answer for a client: nothing is put back.
        if ctx.parent_id is None and len(self._vaults) < _MOST_REQUESTS:
            self._vaults[attempt.request_id] = vault
        self._replaced += 1
        return redacted

    @hookimpl
    async def transform_response(self, ctx: RequestContext, answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Put back."""
        vault = self._vaults.get(ctx.request_id)
        if vault is None:
            return None
        restored: Mapping[str, Any] = mapped(answer, vault.restore)
        return restored

    @hookimpl
    def transform_stream(
        self, ctx: RequestContext, pieces: AsyncIterator[Mapping[str, Any]]
    ) -> AsyncIterator[Mapping[str, Any]] | None:
        """Put back, also what comes in several pieces."""
        vault = self._vaults.get(ctx.request_id)
        return None if vault is None else _restored(vault, pieces)

    @hookimpl
    async def settle(self, ctx: RequestContext) -> None:
        """Forget the request."""
        self._vaults.pop(ctx.request_id, None)

    @hookimpl
    def status(self) -> Status:
        """Say how much was replaced; never what."""
        return Status(
            ok=True,
            summary=f"replaced in {self._replaced} attempts: {', '.join(self._kinds) or 'nothing'}",
            details={
                "attempts": self._replaced,
                "open": len(self._vaults),
                "kinds": sorted(PATTERNS.keys() & set(self._kinds)),
            },
        )


async def _restored(vault: Vault, pieces: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
    restorer = Restorer(vault)
    async for piece in pieces:
        for restored in restorer.push(piece):
            yield restored
    for restored in restorer.end():
        yield restored


plugin: Final = PluginInfo(
    name="redaction",
    config=RedactionConfig,
    factory=Redaction,
    summary="Hides personal data from providers, and restores it in their answers.",
)
