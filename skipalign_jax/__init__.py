"""SkipAlign in JAX: long-context alignment from short samples."""

import os
import signal
import sys

# transformers is used for tokenizers and configs only; it need not say, at every
# start, that there is no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

# sys.argv[0] is "-m" until `python -m` has found its module.
_PROGRAM = os.path.splitext(os.path.basename((sys.argv or [""])[0]))[0]
_IS_COMMAND = _PROGRAM in ("-m", "skipalign")


def _check_system() -> None:
  """Ends a command on another system than Linux with one line.

  Commands limit processes, lock files and take signals in the way of Linux. Programs
  that import this package are not ended.
  """
  if _IS_COMMAND and sys.platform != "linux":
    message = (
      f"error: the commands of skipalign_jax run on Linux, and this is {sys.platform}. "
      "On Windows use WSL 2, on a Mac a container (launch/docker/cpu.Dockerfile)\n"
    )
    os.write(2, message.encode("ascii"))
    sys.exit(2)


def _end_at_ctrl_c() -> None:
  """Ctrl-C while a command imports its modules prints one line, not a traceback."""

  def end(*_) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)

  # Other programs that import this package keep their handlers, as those that ignore
  # Ctrl-C do.
  if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


_check_system()
_end_at_ctrl_c()
