"""Shared by all tests: caches of compiled programs and of tokenized samples.

Many tests, and the commands they start, compile the same tiny programs.
"""

import gc
import os
import signal
import tempfile

import pytest

# Set before jax is imported; pytest-xdist's workers inherit it.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax_cache_")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Compiling takes most of the time of tiny programs. `make parity` and `make colabs`
# compile as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
  # The first compiles a step in 40 % of the time, the second in 80 % of the rest: by
  # default XLA cuts each program into 32 for its threads. An XLA without one of these
  # flags ends with its name.
  quick = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
  )
  flags = os.environ.get("XLA_FLAGS", "").split()
  os.environ["XLA_FLAGS"] = " ".join([*flags, *(x for x in quick if x not in flags)])
# Programs that a test starts would inherit that nohup ignores SIGHUP and a shell's
# background SIGINT; a handler is not inherited.
for number in (signal.SIGHUP, signal.SIGINT):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, lambda *_: None)
# Tracing makes many objects; by default the collector walks all modules and tests again
# and again for them.
gc.set_threshold(20_000, 20, 100)


def pytest_collection_finish():
  gc.collect()
  gc.freeze()  # what is there now is never walked again


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("tokens"))
