"""What a plugin's admin routes read from a request: its body, its query, and the user.

::

    async def pause(self, request):
        signed = await read_body(Signed, request)
        await self._engine.pause(request.path_params["name"], signed.by(request), signed.reason)

Every mistake is an ``InvalidInput`` that names the field and never shows its value, which may be a secret.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Final, TypeVar
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, StringConstraints, TypeAdapter, ValidationError
from starlette.requests import Request

from .config import Section, fields_at, message_of
from .errors import InvalidInput, nearest

MAX_BODY_BYTES: Final = 1_000_000
#: The admin key's user or alias, set by the bridge; a value sent by the client is replaced.
USER_HEADER: Final = "x-pointsman-user"
#: The user when the gateway knows no name.
NAMELESS: Final = "admin"

# Control characters, surrogates, and line and paragraph separators: none of them can be shown or sent reliably.
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return the text, which can be shown in one line.

    Raises:
        ValueError: it contains control characters.
    """
    if any(unicodedata.category(char) in _UNPRINTABLE for char in text):
        raise ValueError("must not contain control characters")
    return text


Who = Annotated[str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True), AfterValidator(printable)]
Reason = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True), AfterValidator(printable)]

M = TypeVar("M", bound=BaseModel)
_WHO: Final[TypeAdapter[str]] = TypeAdapter(Who)


class Input(Section):
    """Base of bodies and queries: unknown fields, NaN and infinite numbers are errors."""


class Signed(Input):
    """The optional body of a change that is recorded together with its author.

    Attributes:
        who: The author; None means the owner of the admin key.
        reason: The reason for the change.
    """

    who: Who | None = None
    reason: Reason = ""

    def by(self, request: Request) -> str:
        """Return the author.

        Raises:
            InvalidInput: the user's name that the gateway gives is not printable, or is too long.
        """
        return self.who if self.who is not None else user(request)


def user(request: Request) -> str:
    """Return the owner of the request's admin key.

    Raises:
        InvalidInput: the user's name that the gateway gives is not printable, or is too long.
    """
    header = request.headers.get(USER_HEADER, NAMELESS)
    # The bridge percent-encodes the name and cuts it to length: a name cut within a character stays encoded.
    name = unquote(header)
    try:
        return _WHO.validate_python(name if name.isprintable() else header)
    except ValidationError as err:
        raise InvalidInput(f"{USER_HEADER}: {message_of(err.errors()[0])}", param=USER_HEADER) from None


async def read_body(model: type[M], request: Request) -> M:
    """Read a request's JSON body; an empty one counts as ``{}``.

    Raises:
        InvalidInput: naming the field, or ``body`` when it is not a JSON object, or larger than ``MAX_BODY_BYTES``.
    """
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise InvalidInput(f"the body is larger than {MAX_BODY_BYTES} bytes", param="body")
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as err:
        raise invalid(model, err, "body") from None


def read_query(model: type[M], request: Request) -> M:
    """Read a request's query parameters; the last of repeated parameters counts.

    Raises:
        InvalidInput: naming the parameter.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as err:
        raise invalid(model, err, "query") from None


def invalid(model: type[BaseModel], error: ValidationError, whole: str) -> InvalidInput:
    """Return the first validation error as an error for the client.

    Args:
        model: The model that was validated.
        error: Pydantic's errors.
        whole: The name to use when the error belongs to no field.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # A field that is misspelt is missing as well; the misspelling says more.
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = message_of(first)
    if first["type"] == "extra_forbidden":
        *path, key = first["loc"]
        known = fields_at(model, path)
        message = f"unknown key{nearest(str(key), known)}; allowed: {', '.join(known) or 'none'}"
    elif first["type"] == "json_invalid":
        message = message.replace("Invalid JSON", "is not JSON")
    return InvalidInput(f"{field or f'the {whole}'}: {message}", param=field or whole)
