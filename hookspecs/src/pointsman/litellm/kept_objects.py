"""What providers keep for tenants: a tenant lists, reads, uses and removes its own files, batches and videos only.

LiteLLM itself guards stored responses in this way, and files only with a database.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from litellm.proxy.openai_files_endpoints.common_utils import get_original_file_id
from litellm.types.videos.utils import decode_video_id_with_provider

from ..errors import StoreError
from ..types import Denial, Endpoint
from .stored_answers import unwrapped

if TYPE_CHECKING:
    from ..host.owners import Owners
    from ..types import RequestContext

log: Final = logging.getLogger("pointsman")

_KEPT: Final = frozenset({Endpoint.BATCHES, Endpoint.FILES, Endpoint.VIDEOS})
#: The id in the path of a request about one of them.
_IN_PATH: Final = re.compile(r"/(?:files|batches|videos)/([^/:?]{1,4096})")
#: Files that a request for a batch uses, and those that the batch has made.
_USED: Final = "input_file_id"
_MADE: Final = ("id", "output_file_id", "error_file_id")
_UNKNOWN: Final = Denial(status=404, code="not_found", message="There is no such file, batch or video.")
_CANNOT_BE_ASKED: Final = Denial(
    status=503,
    code="store_unavailable",
    type="service_unavailable_error",
    message="Whose this file, batch or video is cannot be looked up now; try again.",
    retry_after_s=1.0,
)


async def refused(owners: Owners, ctx: RequestContext, path: str) -> Denial | None:
    """Return why a tenant must not use what a request names, or None.

    What is not known to belong to a tenant, such as what the operator has made, is everyone's who knows its id.

    Args:
        owners: Who has made what.
        ctx: The request, admitted.
        path: Its path.
    """
    tenant = ctx.identity.tenant
    if ctx.endpoint not in _KEPT or tenant is None:
        return None
    ids = [*_IN_PATH.findall(path), *([used] if isinstance(used := ctx.body.get(_USED), str) else [])]
    if not ids:
        return None
    try:
        found = await owners.of([_plain(id_) for id_ in ids])
    except StoreError:
        return _CANNOT_BE_ASKED
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
    entries = getattr(response, "data", None)
    try:
        if isinstance(entries, list):
            found = await owners.of([_plain(_id(entry)) for entry in entries])
            response.data = [entry for entry, owner in zip(entries, found, strict=True) if owner == tenant]
            return
        # What a tenant only reads may be the operator's; the results of its own batch are its own. A video is made of another.
        id_, asked = _plain(_id(response)), [_plain(found) for found in _IN_PATH.findall(path)]
        makes = not asked or (method == "POST" and id_ not in asked)
        if makes or await owners.of([id_]) == [tenant]:
            await owners.note(map(_plain, _names(response)), tenant)
    except StoreError as err:
        log.warning("whose files and batches are cannot be looked up or noted: %s", err)
        if isinstance(entries, list):
            response.data = []


def _names(response: Any) -> Iterator[str]:
    for name in _MADE:
        found = getattr(response, name, None)
        if isinstance(found, str) and found:
            yield found


def _id(entry: Any) -> str:
    found = entry.get("id") if isinstance(entry, dict) else getattr(entry, "id", None)
    return found if isinstance(found, str) else ""


def _plain(id_: str) -> str:
    """Return the provider's own id, without what LiteLLM has put around it."""
    return str(decode_video_id_with_provider(unwrapped(str(get_original_file_id(id_)))).get("video_id") or id_)
