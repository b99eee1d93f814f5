"""What a run or an evaluation was made with: code, libraries, hardware."""

import pathlib
import platform
import subprocess
from typing import Any

import jax

from skipalign_jax.hf import card


def describe() -> dict[str, Any]:
  """Commit of this code, versions of libraries, and hardware; JSON."""
  devices = jax.devices()
  return {
    "commit": commit(),
    "versions": {"python": platform.python_version()} | card.library_versions(),
    "hardware": {
      "device": devices[0].device_kind,
      "devices": len(devices),
      "processes": jax.process_count(),
      "machine": platform.machine(),
    },
  }


def commit() -> str | None:
  """Of the repository that this code is in, with "+" for local changes; or None."""
  here = pathlib.Path(__file__).parents[1]
  git = lambda *arguments: subprocess.run(
    ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
  )
  try:
    head = git("rev-parse", "--short=12", "HEAD")
    if head.returncode:
      return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
  except (OSError, subprocess.SubprocessError):
    return None
