"""What providers keep for tenants: a tenant lists, reads, uses and removes its own objects only, wherever it names them.

LiteLLM itself guards stored responses in this way, and files only with a database.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from litellm.proxy.hooks.responses_id_security import ResponsesIDSecurity

from ..errors import StoreError
from ..sessions import goes_on_from
from ..types import Denial, Endpoint
from . import named_objects
from .named_objects import LONGEST_ID, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..host.owners import Owners
    from ..types import RequestContext

log: Final = logging.getLogger("pointsman")

_KEPT: Final = frozenset(
    {
        Endpoint.BATCHES,
        Endpoint.CONTAINERS,
        Endpoint.FILES,
        Endpoint.FINE_TUNING,
        Endpoint.INTERACTIONS,
        Endpoint.VECTOR_STORES,
        Endpoint.VIDEOS,
    }
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
_NOT_KNOWN: Final = Denial(
    status=404,
    code="not_found",
    message="It is not known that an answer to this tenant has made what the request names: a container, conversation, "
    "interaction, cached content, spoken answer, or an item of a response by its id. Send the content instead, or let the operator share it "
    "(`shared_objects` in the `pointsman:` section).",
)
_NOT_REMOVED: Final = Denial(
    status=404,
    code="not_found",
    message="It is not known that this tenant has made what the request removes: another one has, or the gateway's store has "
    "lost the note. The operator can remove it.",
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


class Looked(NamedTuple):
    """What is known of the objects that a request names.

    Attributes:
        denial: Why the tenant must not use them, or None.
        carried_tokens: Of the answers that it goes on from, the tokens that it reads again; 0 where that is not known.
    """

    denial: Denial | None = None
    carried_tokens: int = 0


_NOTHING: Final = Looked()


async def look(owners: Owners, ctx: RequestContext, method: str, path: str) -> Looked:
    """Look up what a request names.

    What is not known to belong to a tenant, such as what the operator has made, can be used by those who know its id, and
    removed by the operator only. What only answers of models make is the tenant's own, or one that the operator shares.

    Args:
        owners: Who has made what.
        ctx: The request.
        method: Its HTTP method.
        path: Its path.
    """
    tenant = ctx.identity.tenant
    if tenant is None:
        return _NOTHING
    looked = await look_at_body(owners, tenant, ctx.endpoint, ctx.body)
    if looked.denial is not None:
        return looked
    in_path = [*named_objects.in_path(path)]
    if not in_path:
        return looked
    own = None
    if ctx.endpoint in _KEPT and (method == "DELETE" or path.endswith("cancel")):
        own = _NOT_REMOVED
    elif ctx.endpoint is Endpoint.INTERACTIONS:
        own = _NOT_KNOWN
    return looked._replace(denial=(await _look_up(owners, tenant, in_path, own=own)).denial)


async def look_at_body(owners: Owners, tenant: str | None, endpoint: Endpoint, body: Mapping[str, Any]) -> Looked:
    """Look up what a body names.

    Args:
        owners: Who has made what.
        tenant: The tenant; None is the operator.
        endpoint: The API.
        body: A request's body, or a client's event on a websocket.
    """
    if tenant is None:
        return _NOTHING
    looked = await _look_up(owners, tenant, named_objects.in_body(body), before=goes_on_from(endpoint, body))
    if looked.denial is not None:
        return looked
    for id_ in dict.fromkeys(named_objects.of_answers(endpoint, body)):
        if not owners.is_shared(id_):
            denial = (await _look_up(owners, tenant, [id_], own=_NOT_KNOWN)).denial
            if denial is not None:
                return looked._replace(denial=denial)
    return looked


async def _look_up(
    owners: Owners, tenant: str, ids: Iterable[str], *, before: Sequence[str] = (), own: Denial | None = None
) -> Looked:
    """Look up objects.

    Args:
        owners: Who has made what.
        tenant: The tenant.
        ids: What clients call them.
        before: Which of them are answers that the request goes on from.
        own: Where one of them has to be its own, the denial when none is.
    """
    possible: set[str] = set()
    before = [_decrypted(id_) for id_ in before]
    for id_ in (*ids, *before):
        if len(id_) > LONGEST_ID or len(possible) > _MOST_IDS:
            return Looked(_TOO_MANY)
        possible |= named_objects.possible(id_)
    if not possible:
        return _NOTHING
    try:
        found = dict(zip(possible, await owners.notes([*possible]), strict=True))
    except StoreError:
        return Looked(_CANNOT_BE_ASKED)
    if any(note.tenant not in {None, tenant} for note in found.values()):
        return Looked(_UNKNOWN)
    if own is not None and not any(note.tenant == tenant for note in found.values()):
        return Looked(own)
    # One that is not known makes all of them unknown.
    names = (named_objects.possible(id_) & found.keys() for id_ in before)
    carried = [max((found[name].tokens for name in those), default=0) for those in names]
    return Looked(carried_tokens=sum(carried) if all(carried) else 0)


def _decrypted(id_: str) -> str:
    """Return a response's id without LiteLLM's encryption, which says whose it is."""
    try:
        return str(ResponsesIDSecurity()._decrypt_response_id(id_)[0]) if len(id_) <= LONGEST_ID else id_  # noqa: SLF001  # LiteLLM has no other name for it in all versions
    except Exception:  # noqa: BLE001  # what cannot be read is not known
        return id_


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
            names = {plain(value) for name in _MADE if (value := _field(response, name))}
            # What is only read has been noted, with its length.
            await owners.note(names if makes else names - {id_}, tenant)
    except StoreError as err:
        log.warning("whose files and batches are cannot be looked up or noted: %s", err)
        listed.clear()


async def made(owners: Owners, ctx: RequestContext, ids: Iterable[str], tokens: int = 0) -> None:
    """Note whose it is what an answer has made, such as containers, and the answer itself where the provider keeps it.

    Args:
        owners: Who has made what.
        ctx: The request, or the connection.
        ids: The provider's ids.
        tokens: All that the answer has read and written: what requests that go on from it read again.
    """
    if (tenant := ctx.identity.tenant) is None or not (found := {plain(id_) for id_ in ids if id_}):
        return
    try:
        await owners.note(found, tenant, tokens)
    except StoreError as err:
        log.warning("whose it is what an answer has made cannot be noted: %s", err)


def _entries(response: Any) -> list[Any]:
    found = response.get("data") if isinstance(response, dict) else getattr(response, "data", None)
    return found if isinstance(found, list) else []


def _field(entry: Any, name: str) -> str:
    """Return a field of an object of LiteLLM's, some of which are dictionaries; empty where it is not text."""
    found = entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)
    return found if isinstance(found, str) else ""
