"""Who calls, and what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..frozen import FrozenBody, FrozenDict, quick
from .kinds import Endpoint
from .reserved import CREDENTIAL_FIELDS, WITHHELD


def _without_credentials(body: Mapping[str, object]) -> Mapping[str, object]:
    if CREDENTIAL_FIELDS.isdisjoint(body):
        return body
    return {name: value if value is None or name not in CREDENTIAL_FIELDS else WITHHELD for name, value in body.items()}


_NO_BODY: Final = FrozenBody({})


def _no_body() -> FrozenBody:
    return _NO_BODY


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The caller, as the gateway authenticated it. Never contains a raw key.

    Attributes:
        tenant: The tenant's id when a plugin resolved one, else None.
        key_hash: LiteLLM's hash of the API key.
        key_alias: The key's alias.
        user_id: LiteLLM's internal user.
        team_id: LiteLLM's team.
        org_id: LiteLLM's organisation.
        end_user: The end user that the caller named (``user`` in the body); chosen by the client, so not to be trusted.
        admin: Whether the key is a proxy administrator's.
        claims: What an ``authenticate`` hook knows in addition, as text.
        models: Patterns of the models that the caller may use, with ``*``, ``?`` and ``[...]``, for the gateway's own checks
            and lists; None allows all. An ``authenticate`` hook returns them; requests and settlements do not carry them.
    """

    tenant: str | None = None
    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    end_user: str | None = None
    admin: bool = False
    claims: Mapping[str, str] = field(default_factory=FrozenDict)
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        # In the kit as in production: what plugins share, none of them can change.
        if type(self.claims) is dict:
            object.__setattr__(self, "claims", FrozenDict(self.claims))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """The credentials that a caller presents, for the ``authenticate`` hook.

    Attributes:
        api_key: The raw key, without ``Bearer``; empty when missing. It is not part of ``repr``.
        path: The request's path.
        headers: Request headers, lower case, without those that carry credentials.
        client_host: The peer's address, or None.
    """

    api_key: str = field(repr=False)
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    client_host: str | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """One client request, as it arrived.

    Attributes:
        request_id: Ours, unique; also the ``x-pointsman-request-id`` of the answer.
        call_id: LiteLLM's ``litellm_call_id``; may be chosen by the client, so not unique.
        endpoint: The kind of API.
        model: The model name the client asked for; for an alias of the gateway's configuration, what it stands for.
        alias: That alias, or None.
        stream: Whether the client wants a stream.
        identity: The caller.
        session_id: The session that the client names in one of the places that ``pointsman.sessions`` lists, or None.
        headers: Request headers, lower case, without credentials and cookies.
        body: The client's request as it was sent, read-only; nothing of the gateway's is added. Of CREDENTIAL_FIELDS the
            values are withheld. A file of a form is ``filename``, ``data`` and, where its API says it, ``type``. Never log
            it, never put it in a span.
        received_at: Unix seconds.
        client_host: The peer's address as the server sees it, or None; behind a load balancer, the balancer's.
        generates: Whether a model works for it. A request that only reads, cancels, deletes or counts is admitted, and
            nothing is charged for it.
        parent_id: For a call of our own, the client request that it is made for; None for a client's request.
        payer: For a call of our own, the tenant that pays, where the plugin names one; ``identity`` is always the caller's
            for whom it is made, so that rules about callers hold for mirrors and judges too.
        within: For a response on a websocket, the id of the request that opened it, whose place among concurrent requests
            it shares; None for all others.
        carried_tokens: About how many tokens the provider has kept of a conversation and reads again, in addition to ``body``.
    """

    request_id: str
    endpoint: Endpoint
    model: str
    stream: bool
    identity: Identity
    received_at: float
    call_id: str | None = None
    session_id: str | None = None
    client_host: str | None = None
    headers: Mapping[str, str] = field(default_factory=FrozenDict, repr=False)
    body: Mapping[str, object] = field(default_factory=_no_body, repr=False)
    generates: bool = True
    alias: str | None = None
    parent_id: str | None = None
    payer: str | None = None
    within: str | None = None
    carried_tokens: int = 0

    def __post_init__(self) -> None:
        if type(self.headers) is not FrozenDict:
            object.__setattr__(self, "headers", FrozenDict(self.headers))
        if type(self.body) is not FrozenBody:
            object.__setattr__(self, "body", FrozenBody(_without_credentials(self.body)))
