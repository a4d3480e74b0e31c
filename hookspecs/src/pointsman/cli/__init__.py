"""The command line: ``pointsman check``, ``doctor``, ``status``, ``plugins``, and one group per plugin that has commands.

Nothing here imports litellm, and a command's own code is imported only when it is used.
"""

from .root import main

__all__ = ["main"]
