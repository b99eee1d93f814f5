"""Which names are of the Hugging Face hub; failed downloads end in one message.

`hub:` begins a name of the hub. For models it may be left out where nothing local can
be meant, so that a folder that is missing is never looked for on the hub.
"""

import contextlib
import functools
import os
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from skipalign_jax.runtime import errors, paths

PREFIX = paths.HUB
_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


def is_id(name: str) -> bool:
  """Whether the hub can have a model or data set of this name, without `hub:`."""
  return _ID.fullmatch(name) is not None


def model_id(reference: str) -> str:
  """ORG/NAME or ORG/NAME@REVISION where a reference means a model on the hub, or "".

  Without `hub:` it has one slash, is not the name of a .gguf file, and its first part
  is nothing local, unless the model was downloaded before.

  Args:
    reference: not a local file or folder, nor a step of one.

  Raises:
    UserError: it begins with `hub:`, but the hub has no such names.
  """
  prefixed = reference.startswith(PREFIX)
  found = reference.removeprefix(PREFIX)
  name, at, revision = found.partition("@")
  valid = is_id(name) and (not at or _REVISION.fullmatch(revision) is not None)
  if prefixed and not valid:
    raise errors.UserError(
      f"{reference}: not a name on the hub; give hub:ORG/NAME or hub:ORG/NAME@REVISION"
    )
  if prefixed:
    return found
  if not valid or "/" not in name or found.endswith(".gguf"):
    return ""
  return "" if is_local(name) and not is_cached(name) else found


def is_local(name: str) -> bool:
  """Whether the first part of ORG/NAME is in the current folder."""
  return os.path.lexists(name.partition("/")[0])


def is_cached(name: str) -> bool:
  """Whether a model ORG/NAME was downloaded before."""
  import huggingface_hub

  folder = huggingface_hub.file_download.repo_folder_name(
    repo_id=name, repo_type="model"
  )
  cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
  return (cache / folder / "snapshots").is_dir()


def public_id(reference: str) -> str:
  """The id of a recorded reference that others can find on the hub, or "".

  Runs record models of the hub with `hub:`. Older ones did not; their references count
  if nothing local has that name and the model is in the cache.
  """
  found = model_id(reference)
  if not found or reference.startswith(PREFIX):
    return found
  name = found.partition("@")[0]
  return found if is_cached(name) and not is_local(name) else ""


@functools.cache
def is_reachable() -> bool:
  """Whether the hub's address is known, or a proxy looks it up.

  The library asks several times, for half a minute, and only then looks in its cache.
  Downloads get `local_files_only` where this is False.
  """
  import huggingface_hub

  if "https" in urllib.request.getproxies():
    return True
  host = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT).hostname
  try:
    socket.getaddrinfo(host, None)
  except OSError:
    return False
  return True


@contextlib.contextmanager
def downloading(what: str, otherwise: str) -> Iterator[None]:
  """Turns whatever the download in the block raises into a UserError.

  Args:
    what: is downloaded; the subject of the message.
    otherwise: what the user can do without the hub.
  """
  try:
    yield
  # The libraries raise their own errors, those of their HTTP client and OSError.
  except Exception as error:
    import huggingface_hub

    reason = errors.first_line(error)
    if isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
      reason = "it cannot be reached, and its cache does not have this"
    raise errors.UserError(
      f"{what} could not be downloaded from the Hugging Face hub ({reason}). Check "
      "the name and the network; gated repositories need 'hf auth login'. Otherwise "
      f"{otherwise}"
    ) from error


@functools.cache
def dataset_revision(name: str) -> str:
  """The commit of a data set: what the hub has now, without it what the cache has.

  Raises:
    UserError: neither has the data set.
  """
  import huggingface_hub

  with downloading(f"the commit of data set {name}", "name a local file"):
    try:
      return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception:
      cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
      folder = huggingface_hub.file_download.repo_folder_name(
        repo_id=name, repo_type="dataset"
      )
      if (found := cache / folder / "refs" / "main").is_file():
        return found.read_text(encoding="utf-8").strip()
      raise
