"""Several processes that run one program: they connect, and they end together.

Every process runs the same command. They connect to JAX's coordination service, which
process 0 hosts. The texts and barriers of this module use it too, so that a wait of
minutes (one process tokenizes) does not exceed the time limit of a collective.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as service  # its client has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from skipalign_jax.runtime import errors, launches, rendezvous, signals, terminal

_ONE_PROCESS = "--distributed=off runs a single process"
TIMEOUT = 300  # seconds for all processes to connect
HEARTBEAT = 60  # seconds without a message after which a process counts as dead
_ENDING_MS = 10_000  # that a process that ends waits for the others to end too
# A wait in one call would keep Python from handling signals; many short ones would each
# leave something in JAX's service.
_WAIT_MS, _PAUSE = 1000, 0.2  # a first wait; seconds between looks after it


def initialize(flag: str, run: str, timeout: int = TIMEOUT) -> None:
  """Connects to the other processes, if there are any, before a device is used.

  Args:
    flag: see `launches.decide`.
    run: what only processes of the same run have, such as the path of their workdir.
    timeout: seconds until it gives up.

  Raises:
    UserError: see `launches.decide` and `rendezvous.meet`; or the cluster does not
      answer. If the others do not connect in time, the process ends with status 2,
      because XLA would abort it.
  """
  launch = launches.decide(flag, os.environ)
  if launch is None:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM for itself, and nothing here asks it about signals.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    arguments = launches.complete(launch.arguments, timeout)
    _meet(arguments, run, timeout)
    _pass_proxies_by(arguments["coordinator_address"], os.environ)
    with _watchdog(launch, timeout):
      jax.distributed.initialize(
        **arguments,
        initialization_timeout=2 * timeout + 60,
        heartbeat_timeout_seconds=HEARTBEAT,
      )
      jax.devices()  # communicates with all processes: they are all connected now
  except errors.UserError as error:
    raise errors.UserError(f"{error}; {_ONE_PROCESS}") from error
  except (ValueError, RuntimeError, OSError) as error:
    raise errors.UserError(
      f"{launch.source} starts several processes, but this one cannot connect to them: "
      f"{errors.first_line(error)}\nFix that; {_ONE_PROCESS}."
    ) from error


def _meet(arguments: dict[str, Any], run: str, timeout: int) -> None:
  """Waits for the other processes of this run."""
  names = ("coordinator_address", "num_processes", "process_id")
  me = rendezvous.Process(*(arguments[name] for name in names), run)
  if me.count > 1:
    rendezvous.meet(me, timeout)


def _pass_proxies_by(address: str, environ: MutableMapping[str, str]) -> None:
  """Lets gRPC reach process 0 where the environment names a proxy.

  It would ask the proxy, which knows no names of the cluster, and then XLA aborts.
  """
  if not any(environ.get(f"{kind}_proxy") for kind in ("grpc", "https", "http")):
    return
  host = address.rpartition(":")[0].strip("[]")
  others = environ.get("no_grpc_proxy") or environ.get("no_proxy", "")
  environ["no_grpc_proxy"] = ",".join(filter(None, (others, host)))


@contextlib.contextmanager
def _watchdog(launch: launches.Launch, timeout: int) -> Iterator[None]:
  """Ends the process if the block takes longer than `timeout` seconds."""
  timer = threading.Timer(timeout, _give_up, (launch, timeout))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _give_up(launch: launches.Launch, seconds: int) -> None:
  state = service.global_state
  terminal.print_to_stderr(
    f"error: expected {state.num_processes} processes to connect to "
    f"{state.coordinator_address} (from {launch.source}), but after {seconds} s "
    f"process {state.process_id} still waits. Look at what the others print; "
    f"{_ONE_PROCESS}."
  )
  os._exit(2)


def is_first() -> bool:
  """Whether this process writes files and messages for all."""
  return jax.process_index() == 0


_exchanges = itertools.count()


def exchange(text: str) -> list[str]:
  """The texts of all processes, by index; all must call it equally often."""
  if jax.process_count() == 1:
    return [text]
  client, key = service.global_state.client, f"skipalign/{next(_exchanges)}"
  client.key_value_set(f"{key}/{jax.process_index()}", text)
  if is_first():
    texts = [_wait_for(f"{key}/{i}") for i in range(jax.process_count())]
    client.key_value_set(f"{key}/all", json.dumps(texts))
  return json.loads(_wait_for(f"{key}/all"))


def highest(status: int) -> int:
  """The highest status of all processes, now; all must call it equally often."""
  return max(map(int, exchange(str(status))))


def _wait_for(key: str) -> str:
  """The value of a key as soon as a process sets it; a dead one is an error."""
  client = service.global_state.client
  look = lambda: client.blocking_key_value_get(key, _WAIT_MS)
  while True:
    try:
      return look()
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith(("DEADLINE_EXCEEDED", "NOT_FOUND")):
        raise
    look = lambda: client.key_value_try_get(key)
    time.sleep(_PAUSE)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """A UserError that the block raises in one process is raised in all of them.

  The block must not wait for other processes. Its end is a barrier.
  """
  error = None
  try:
    yield
  except errors.UserError as raised:
    error = raised
  messages = exchange("" if error is None else str(error) or "unknown error")
  if any(messages):
    raise errors.UserError(next(filter(None, messages))) from error


def is_of_peer(error: BaseException | None) -> bool:
  """Whether an error of several processes most likely means that another one ended."""
  causes = (error, error.__cause__) if error else ()
  found = any(isinstance(one, jax.errors.JaxRuntimeError) for one in causes)
  return found and jax.process_count() > 1


class Votes:
  """Whether any process has to stop, known to all of them at the same step."""

  def __init__(self):
    self._cast = None
    if jax.process_count() > 1:
      mesh = Mesh(np.array(jax.devices()), "device")
      self._each = NamedSharding(mesh, PartitionSpec("device"))
      everywhere = NamedSharding(mesh, PartitionSpec())
      self._highest = jax.jit(jnp.max, out_shardings=everywhere)

  def cast(self, status: int) -> int:
    """The highest status of all processes at the previous call.

    The votes of this call are not read: that would wait for the step that is being
    computed. A single process gets back its own status at once.
    """
    if jax.process_count() == 1:
      return status
    # By a callback, because processes may have different numbers of devices.
    mine = lambda index: np.full(1, status, np.int32)
    votes = jax.make_array_from_callback((jax.device_count(),), self._each, mine)
    before, self._cast = self._cast, self._highest(votes)
    return 0 if before is None else int(before)


def run(work: Callable[[], int]) -> int:
  """Runs the work of a command of several processes; returns its exit status.

  An error that all of them have is reported once. A process that fails alone leaves
  at once: an orderly exit would wait for the others, who wait for it.

  Raises:
    UserError: raised by `work` in all processes; process 0 raises it.
  """
  try:
    with errors.of_storage():
      return work()
  except errors.UserError as error:
    return _reported_once(error)
  except KeyboardInterrupt as error:
    if jax.distributed.is_initialized():
      terminal.print_to_stderr(signals.describe(error))
      if _all_end("stopped"):  # otherwise the others have not seen it
        jax.distributed.shutdown()  # process 0 ends after the others have left it
      _leave(signals.status_of(error))
    raise
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    with contextlib.suppress(OSError):  # stderr may be what broke
      terminal.print_exception(error)
      if is_of_peer(error):
        terminal.print_to_stderr(
          f"error: process {jax.process_index()} cannot continue; most likely another "
          "one ended, and its output says why. The same command resumes from the "
          "latest checkpoint."
        )
    _leave(1)


def _reported_once(error: errors.UserError) -> int:
  """The exit status after an error; process 0 raises it for all that have it."""
  if not jax.distributed.is_initialized():
    raise error
  if not _all_end("failed"):
    terminal.print_to_stderr(f"error: process {jax.process_index()}: {error}")
    _leave(2)
  if is_first():
    raise error
  return 2


def _all_end(how: str) -> bool:
  """Waits for the other processes to end in the same way; False if they do not.

  JAX aborts those that are still at work when process 0 leaves.
  """
  try:
    service.global_state.client.wait_at_barrier(f"skipalign/{how}", _ENDING_MS)
  except jax.errors.JaxRuntimeError:
    return False
  return True


def _leave(status: int) -> NoReturn:
  """Ends the process without waiting for the others."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(status)
