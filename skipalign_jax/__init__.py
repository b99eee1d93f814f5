"""SkipAlign in JAX: long-context alignment from short samples."""

import os
import signal
import sys

# transformers is used for tokenizers and configs only; it need not say, at every
# start, that there is no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"


def _end_at_ctrl_c() -> None:
  """Ctrl-C while a command imports its modules prints one line, not a traceback."""

  def end(*_) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)

  # sys.argv[0] is "-m" until `python -m` has found its module. Other programs that
  # import this package keep their handlers, as those that ignore Ctrl-C do.
  is_command = os.path.basename((sys.argv or [""])[0]) in ("-m", "skipalign")
  if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


_end_at_ctrl_c()
