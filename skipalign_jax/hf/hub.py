"""Failed downloads from the Hugging Face hub end in one message."""

import contextlib
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
