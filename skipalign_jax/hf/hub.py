"""Failed downloads from the Hugging Face hub end in one message."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator

from skipalign_jax.runtime import errors


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
    raise errors.UserError(
      f"{what} could not be downloaded from the Hugging Face hub "
      f"({errors.first_line(error)}). Check the name and the network; gated "
      f"repositories need 'hf auth login'. Otherwise {otherwise}"
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
