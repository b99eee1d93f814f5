"""Files that may not grow, as on a full disk: needs no rights and no mount."""

import contextlib
import resource


@contextlib.contextmanager
def files_of(size):
  """In the block no file of this process grows beyond `size` bytes (EFBIG)."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
