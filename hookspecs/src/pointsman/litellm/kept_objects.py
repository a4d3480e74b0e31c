"""What providers keep for tenants: a tenant lists, reads, uses and removes its own objects only, wherever it names them.

LiteLLM itself guards stored responses in this way, and files only with a database.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from ..errors import StoreError
from ..types import Denial, Endpoint
from . import named_objects
from .named_objects import LONGEST_ID, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..host.owners import Owners
    from ..types import RequestContext

log: Final = logging.getLogger("pointsman")

_KEPT: Final = frozenset(
    {Endpoint.BATCHES, Endpoint.CONTAINERS, Endpoint.FILES, Endpoint.VECTOR_STORES, Endpoint.VIDEOS}
)
#: What an object has made, besides itself.
_MADE: Final = ("id", "output_file_id", "error_file_id")
#: More ids are not looked up for one request.
_MOST_IDS: Final = 2_000
_UNKNOWN: Final = Denial(
    status=404,
    code="not_found",
    message="There is no such object: a file, batch, video, container, vector store or response that the request names.",
)
_TOO_MANY: Final = Denial(
    status=400,
    code="too_many_ids",
    message=f"The request names more than {_MOST_IDS} files or other stored objects, or one by more than {LONGEST_ID} "
    "characters; send several requests.",
)
_CANNOT_BE_ASKED: Final = Denial(
    status=503,
    code="store_unavailable",
    type="service_unavailable_error",
    message="Whose the files and other stored objects are that the request names cannot be looked up now; try again.",
    retry_after_s=1.0,
)


async def refused(owners: Owners, ctx: RequestContext, method: str, path: str) -> Denial | None:
    """Return why a tenant must not use what a request names, or None.

    What is not known to belong to a tenant, such as what the operator has made, can be used by those who know its id, and
    removed by the operator only.

    Args:
        owners: Who has made what.
        ctx: The request, admitted.
        method: Its HTTP method.
        path: Its path.
    """
    if (denial := await refused_ids(owners, ctx.identity.tenant, named_objects.in_body(ctx.body))) is not None:
        return denial
    in_path = [*named_objects.in_path(path)]
    removes = ctx.endpoint in _KEPT and (method == "DELETE" or path.endswith("cancel"))
    return await refused_ids(owners, ctx.identity.tenant, in_path, removes=removes)


async def refused_ids(
    owners: Owners, tenant: str | None, ids: Iterable[str], *, removes: bool = False
) -> Denial | None:
    """Return why a tenant must not use objects, or None.

    Args:
        owners: Who has made what.
        tenant: The tenant; None is the operator.
        ids: What clients call them.
        removes: Whether they are removed, so that one of them has to be its own.
    """
    if tenant is None:
        return None
    possible: set[str] = set()
    for id_ in ids:
        if len(id_) > LONGEST_ID or len(possible) > _MOST_IDS:
            return _TOO_MANY
        possible |= named_objects.possible(id_)
    if not possible:
        return None
    try:
        found = await owners.of([*possible])
    except StoreError:
        return _CANNOT_BE_ASKED
    if removes and tenant not in found:
        return _UNKNOWN
    return _UNKNOWN if any(owner not in {None, tenant} for owner in found) else None


async def answered(owners: Owners, ctx: RequestContext, method: str, path: str, response: Any) -> None:
    """Note whose it is what an answer names; leave in a list what is the tenant's own.

    Args:
        owners: Who has made what.
        ctx: The request.
        method: Its HTTP method.
        path: Its path.
        response: LiteLLM's answer; changed where it is a list.
    """
    tenant = ctx.identity.tenant
    if ctx.endpoint not in _KEPT or tenant is None:
        return
    asked = {plain(found) for found in named_objects.in_path(path)}
    # What an object of the tenant's own holds is not looked through.
    listed = [] if asked or method != "GET" else _entries(response)
    try:
        if listed:
            found = await owners.of([plain(_field(entry, "id")) for entry in listed])
            listed[:] = [entry for entry, owner in zip(listed, found, strict=True) if owner == tenant]
            return
        # What a tenant only reads may be the operator's; the results of its own batch are its own. A video is made of another.
        id_ = plain(_field(response, "id"))
        makes = method == "POST" and id_ not in asked and not (asked and ctx.endpoint is Endpoint.VECTOR_STORES)
        if makes or await owners.of([id_]) == [tenant]:
            names = filter(None, (_field(response, name) for name in _MADE))
            await owners.note(map(plain, names), tenant)
    except StoreError as err:
        log.warning("whose files and batches are cannot be looked up or noted: %s", err)
        listed.clear()


async def made(owners: Owners, ctx: RequestContext, id_: str) -> None:
    """Note whose a response is that LiteLLM does not guard: those on websockets.

    Args:
        owners: Who has made what.
        ctx: The connection.
        id_: The response's id.
    """
    if id_ and (tenant := ctx.identity.tenant) is not None:
        try:
            await owners.note([plain(id_)], tenant)
        except StoreError as err:
            log.warning("whose a response is cannot be noted: %s", err)


def _entries(response: Any) -> list[Any]:
    found = response.get("data") if isinstance(response, dict) else getattr(response, "data", None)
    return found if isinstance(found, list) else []


def _field(entry: Any, name: str) -> str:
    """Return a field of an object of LiteLLM's, some of which are dictionaries; empty where it is not text."""
    found = entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)
    return found if isinstance(found, str) else ""
