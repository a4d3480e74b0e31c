"""LiteLLM's side of the configuration: mistakes that would make Pointsman silently not work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import nearest

HANDLER: Final = "pointsman.litellm.handler"
CUSTOM_AUTH: Final = "pointsman.litellm.custom_auth"

_ENV: Final = "os.environ/"
_MASTER_KEY_ENV: Final = "LITELLM_MASTER_KEY"
#: LiteLLM refuses this one: it stands in too many tutorials.
_PUBLIC_KEYS: Final = frozenset({"sk-1234"})
_OTHER_LISTS: Final = ("success_callback", "failure_callback", "service_callback")


def warnings(
    document: Mapping[str, Any], env: Mapping[str, str], base: Path, authenticating: Sequence[str] | None
) -> Iterator[str]:
    """Yield what is wrong, each with its key path and what to do.

    Args:
        document: The whole LiteLLM configuration.
        env: The environment that the proxy will see.
        base: The directory of the configuration file.
        authenticating: The plugins in use that implement ``authenticate``; None when nobody knows.
    """
    settings, general = _section(document, "litellm_settings"), _section(document, "general_settings")
    yield from _callbacks(settings, base)
    yield from _authentication(settings, general, authenticating)
    yield from _master_key(general, env)


def environment(document: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as LiteLLM leaves it: with the configuration's ``environment_variables`` set."""
    own = {str(name): _resolve(value, env) for name, value in _section(document, "environment_variables").items()}
    return {**env, **{name: str(value) for name, value in own.items() if value is not None}}


def authenticates(document: Mapping[str, Any]) -> bool:
    """Say whether LiteLLM asks our ``authenticate``."""
    return _section(document, "general_settings").get("custom_auth") == CUSTOM_AUTH


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _resolve(value: Any, env: Mapping[str, str]) -> Any:
    return env.get(value.removeprefix(_ENV)) if isinstance(value, str) and value.startswith(_ENV) else value


def _callbacks(settings: Mapping[str, Any], base: Path) -> Iterator[str]:
    where = "litellm_settings.callbacks"
    value = settings.get("callbacks")
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    mentions = names.count(HANDLER)
    if isinstance(value, str):
        yield f'{where}: is a plain text, not a list: LiteLLM then drops every other callback; write ["{HANDLER}"]'
    if not mentions:
        misplaced = [key for key in _OTHER_LISTS if HANDLER in (settings.get(key) or ())]
        near = nearest(HANDLER, [name for name in names if isinstance(name, str)], cutoff=0.8)
        hint = f" (it is in litellm_settings.{misplaced[0]})" if misplaced else near.replace("did you mean", "is it")
        yield f'{where}: does not mention "{HANDLER}"{hint}: Pointsman would never be loaded; add it to the list'
    elif mentions > 1:
        yield f'{where}: mentions "{HANDLER}" {mentions} times, and every hook would run as often; keep one'
    if (shadow := base / "pointsman" / "litellm.py").exists():
        yield f"{where}: LiteLLM would import {shadow} instead of the installed package; rename that file"


def _authentication(
    settings: Mapping[str, Any], general: Mapping[str, Any], authenticating: Sequence[str] | None
) -> Iterator[str]:
    where = "general_settings.custom_auth"
    custom_auth = general.get("custom_auth")
    if custom_auth != CUSTOM_AUTH:
        if isinstance(custom_auth, str) and (near := nearest(custom_auth, [CUSTOM_AUTH], cutoff=0.8)):
            yield f"{where}: {custom_auth!r} is not ours{near}"
        return
    if authenticating is not None and not authenticating:
        yield (
            f"{where}: no plugin in use implements authenticate, so every key but the master key is refused; add one "
            "that does, or remove custom_auth"
        )
    why = "without it a key's list of models is not enforced; set it to true"
    if not settings.get("enable_post_custom_auth_checks"):
        yield f"litellm_settings.enable_post_custom_auth_checks: is not set although custom_auth is ours: {why}"
    if not general.get("custom_auth_run_common_checks"):
        yield f"general_settings.custom_auth_run_common_checks: is not set although custom_auth is ours: {why}"


def _master_key(general: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[str]:
    where = "general_settings.master_key"
    written = general.get("master_key", env.get(_MASTER_KEY_ENV))
    key = _resolve(written, env)
    advice = f"set it to {_ENV}{_MASTER_KEY_ENV} and that variable to a long random key"
    if isinstance(written, str) and written.startswith(_ENV) and key is None:
        advice = f"set the environment variable {written.removeprefix(_ENV)}, which it names, to a long random key"
    if isinstance(key, str) and key.strip() in _PUBLIC_KEYS:
        yield f"{where}: is a publicly known default, with which LiteLLM refuses to start; {advice}"
    elif not (isinstance(key, str) and key.strip()) and not general.get("key_management_system"):
        yield (
            f"{where}: there is no master key: LiteLLM refuses to start, and nobody could use the routes under "
            f"/pointsman; {advice}"
        )
