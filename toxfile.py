"""Lets tox find the Pythons that pyenv has installed: its shims refuse those that are not selected."""

from __future__ import annotations

import os
from pathlib import Path

_PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
_FOUND = sorted(map(str, _PYENV.glob("versions/3.1[1-3].*/bin")))

# Last, so that they stand in only for what is not there otherwise.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOUND])
