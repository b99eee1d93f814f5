"""Shared by all tests: caches of compiled programs and of tokenized samples.

Many tests, and the commands they start, compile the same tiny programs.
"""

import os
import signal
import tempfile

import pytest

# Set before jax is imported; pytest-xdist's workers inherit it.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax_cache_")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Compiling takes most of the time of tiny programs. `make parity` turns it off.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Programs that a test starts would inherit that nohup ignores SIGHUP and a shell's
# background SIGINT; a handler is not inherited.
for number in (signal.SIGHUP, signal.SIGINT):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("tokens"))
