"""Starting Python processes for work that is not trusted."""

import os

_NEEDED = ("LD_LIBRARY_PATH", "PYTHONHOME")


def environment() -> dict[str, str]:
  """The variables without which some installations of Python do not start.

  Nothing else, so that no secret of the environment is passed on.
  """
  return {name: os.environ[name] for name in _NEEDED if name in os.environ}
