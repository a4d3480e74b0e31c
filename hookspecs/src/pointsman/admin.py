"""What a plugin's admin routes read from a request: its body, its query, and who asks.

::

    async def pause(self, request):
        signed = await read_body(Signed, request)
        await self._engine.pause(request.path_params["name"], signed.by(request), signed.reason)

Whatever is wrong is an ``InvalidInput`` that names the field and never shows its value, which may be a secret.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, ClassVar, Final, TypeVar
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from starlette.requests import Request

from .errors import InvalidInput, nearest
from .explain import fields_at, message_of

MAX_BODY_BYTES: Final = 1_000_000
#: The admin key's user or alias, as the bridge says it, whatever the client has put there.
USER_HEADER: Final = "x-pointsman-user"
#: Who asks when the gateway knows no name.
NAMELESS: Final = "admin"

# Control characters, surrogates, and line and paragraph separators: none of them can be shown or sent reliably.
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return a text that can be shown in one line.

    Raises:
        ValueError: it cannot.
    """
    if any(unicodedata.category(char) in _UNPRINTABLE for char in text):
        raise ValueError("must not contain control characters")
    return text


Who = Annotated[str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True), AfterValidator(printable)]
Reason = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True), AfterValidator(printable)]

M = TypeVar("M", bound=BaseModel)
_WHO: Final[TypeAdapter[str]] = TypeAdapter(Who)


class Input(BaseModel):
    """Base of bodies and queries: unknown fields are errors, and no number is NaN or infinite."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Signed(Input):
    """The optional body of a change that is remembered together with who asked for it.

    Attributes:
        who: Who asks; None: whoever the admin key belongs to.
        reason: Why.
    """

    who: Who | None = None
    reason: Reason = ""

    def by(self, request: Request) -> str:
        """Return who asks.

        Raises:
            InvalidInput: the gateway's word for it is no name.
        """
        return self.who if self.who is not None else user(request)


def user(request: Request) -> str:
    """Return whom the request's admin key belongs to.

    Raises:
        InvalidInput: the gateway's word for it is no name.
    """
    header = request.headers.get(USER_HEADER, NAMELESS)
    # The bridge encodes what a header cannot hold, and cuts what is too long: what that leaves stays encoded.
    name = unquote(header)
    try:
        return _WHO.validate_python(name if name.isprintable() else header)
    except ValidationError as err:
        raise InvalidInput(f"{USER_HEADER}: {message_of(err.errors()[0])}", param=USER_HEADER) from None


async def read_body(model: type[M], request: Request) -> M:
    """Read a request's JSON body; an empty one counts as ``{}``.

    Raises:
        InvalidInput: naming the field, or ``body`` when it is no JSON object, or larger than ``MAX_BODY_BYTES``.
    """
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise InvalidInput(f"the body is larger than {MAX_BODY_BYTES} bytes", param="body")
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as err:
        raise invalid(model, err, "body") from None


def read_query(model: type[M], request: Request) -> M:
    """Read a request's query parameters; of one that is given twice, the last counts.

    Raises:
        InvalidInput: naming the parameter.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as err:
        raise invalid(model, err, "query") from None


def invalid(model: type[BaseModel], error: ValidationError, whole: str) -> InvalidInput:
    """Return the first complaint as an error for the client.

    Args:
        model: What was wanted.
        error: What pydantic found.
        whole: What to name when no field is at fault.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # A field that is misspelt is missing as well; the misspelling says more.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = message_of(first)
    if first["type"] == "extra_forbidden":
        *path, key = first["loc"]
        known = fields_at(model, path)
        message = f"unknown key{nearest(str(key), known)}; allowed: {', '.join(known) or 'none'}"
    elif first["type"] == "json_invalid":
        message = message.replace("Invalid JSON", "is not JSON")
    return InvalidInput(f"{field or f'the {whole}'}: {message}", param=field or whole)
