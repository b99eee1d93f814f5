"""Several processes that run one program: they connect, and they end together.

Every process runs the same command. They connect to JAX's coordination service, which
process 0 hosts. The texts and barriers of this module use it too, so that a wait of
minutes (one process tokenizes) does not exceed the time limit of a collective.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import clusters  # what `jax.distributed` asks for an address
from jax._src import distributed as service  # its client has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from skipalign_jax.runtime import errors, rendezvous, signals, terminal

FORMS = "auto, off or HOST:PORT,COUNT,INDEX"
_ONE_PROCESS = "--distributed=off runs a single process"
TIMEOUT = 300  # seconds for all processes to connect
HEARTBEAT = 60  # seconds without a message after which a process counts as dead
_ENDING_MS = 10_000  # that a process that ends waits for the others to end too
# A wait in one call would keep Python from handling signals; many short ones would each
# leave something in JAX's service.
_WAIT_MS, _PAUSE = 1000, 0.2  # a first wait; seconds between looks after it


@dataclasses.dataclass(frozen=True)
class Launch:
  """How this process connects to the others.

  Attributes:
    source: where this is known from, for messages.
    arguments: of `jax.distributed.initialize`; JAX finds the missing ones itself.
  """

  source: str
  arguments: dict[str, Any]


def decide(flag: str, environ: Mapping[str, str]) -> Launch | None:
  """What --distributed means in this environment; None means a single process.

  "auto" knows Open MPI, SLURM steps and TPU slices, from which JAX can get the rest,
  and only if they have more than one process: a shell inside an allocation, or a
  laptop, is a single process.

  Args:
    flag: "auto", "off" or "HOST:PORT,COUNT,INDEX".
    environ: os.environ after jax was imported, which marks TPU machines in it.

  Raises:
    UserError: an invalid flag, or several processes without an address to connect to.
  """
  if flag == "off":
    return None
  if flag != "auto":
    return _explicit(flag)
  if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
    if "OMPI_MCA_orte_hnp_uri" not in environ:  # gone in Open MPI 5
      raise errors.UserError(
        "this version of Open MPI does not provide the address of process 0; give "
        "--distributed=HOST:PORT,$OMPI_COMM_WORLD_SIZE,$OMPI_COMM_WORLD_RANK "
        "(inside sh -c '…', so that each process inserts its own)"
      )
    return Launch("Open MPI", {"cluster_detection_method": "ompi"})
  if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
    # SLURM_NTASKS may be the allocation's; the step's own number was started.
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    if tasks > 1:
      return Launch(
        "SLURM", {"cluster_detection_method": "slurm", "num_processes": tasks}
      )
    return None
  if _on_tpu(environ):
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    slices = _number(environ, "MEGASCALE_NUM_SLICES")
    # Without names of hosts it is a TPU VM; JAX asks its metadata server for them.
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
      return Launch("the TPU's metadata", {})
    if hosts is not None and ("," in hosts or slices > 1):
      return Launch("the TPU slice", {"cluster_detection_method": "gketpu"})
  elif "JAX_COORDINATOR_ADDRESS" in environ:
    raise errors.UserError(
      "JAX_COORDINATOR_ADDRESS is set, but the number of processes is unknown; give "
      "--distributed=HOST:PORT,COUNT,INDEX, or off for one process"
    )
  return None


def _explicit(flag: str) -> Launch:
  address, *numbers = flag.split(",")
  host, colon, port = address.rpartition(":")
  whole = all(part.strip().isdecimal() for part in (port, *numbers))
  if not (host and colon and whole and len(numbers) == 2):
    raise errors.UserError(f"--distributed={flag!r}; give {FORMS}")
  count, index = map(int, numbers)
  if not index < count or not 0 < int(port) < 65536:
    raise errors.UserError(
      f"--distributed={flag!r}: INDEX must be from 0 to COUNT - 1, PORT from 1 to 65535"
    )
  if count == 1:
    return None
  # Otherwise JAX would look for a cluster again, for the devices of this process.
  return Launch(
    f"--distributed={flag}",
    {
      "coordinator_address": address,
      "num_processes": count,
      "process_id": index,
      "cluster_detection_method": "deactivate",
    },
  )


def _number(environ: Mapping[str, str], name: str) -> int:
  value = environ.get(name, "")
  return int(value) if value.isdecimal() else 0


def _on_tpu(environ: Mapping[str, str]) -> bool:
  platforms = environ.get("JAX_PLATFORMS", "")
  return "TPU_ML_PLATFORM" in environ and (not platforms or "tpu" in platforms)


def initialize(flag: str, run: str, timeout: int = TIMEOUT) -> None:
  """Connects to the other processes, if there are any, before a device is used.

  Args:
    flag: see `decide`.
    run: what only processes of the same run have, such as the path of their workdir.
    timeout: seconds until it gives up.

  Raises:
    UserError: see `decide` and `rendezvous.meet`; or the cluster does not answer. If
      the others do not connect in time, the process ends with status 2, because XLA
      would abort it.
  """
  launch = decide(flag, os.environ)
  if launch is None:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM for itself, and nothing here asks it about signals.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    arguments = _complete(launch.arguments, timeout)
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


def _complete(arguments: dict[str, Any], timeout: int) -> dict[str, Any]:
  """Arguments of `jax.distributed.initialize`, with what JAX finds in the cluster."""
  method = arguments.get("cluster_detection_method")
  if method == "deactivate":
    return arguments
  address, count, index, devices = (
    clusters.ClusterEnv.auto_detect_unset_distributed_params(
      os.environ.get("JAX_COORDINATOR_ADDRESS"),
      arguments.get("num_processes"),
      None,
      None,
      method,
      timeout,
    )
  )
  if None in (address, count, index):
    raise ValueError("JAX does not find the address and the number of processes")
  return {
    "coordinator_address": address,
    "num_processes": count,
    "process_id": index,
    "local_device_ids": _own_devices(count, devices, os.environ),
    "cluster_detection_method": "deactivate",
  }


def _own_devices(
  count: int, local: list[int] | None, environ: Mapping[str, str]
) -> list[int] | None:
  """The GPUs of a process that SLURM or Open MPI started; None: all that it sees.

  JAX gives each the GPU of its local number. Others would be idle where a node has
  fewer processes than GPUs, and most numbers do not exist where each process sees its
  own GPUs only.

  Args:
    count: of all processes.
    local: as JAX found it, the number of this process on its node.
    environ: of this process.

  Raises:
    UserError: the processes of this node cannot share its GPUs evenly.
  """
  if "JAX_LOCAL_DEVICE_IDS" in environ or local is None:
    return None
  on_node = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
  if nodes := _number(environ, "SLURM_STEP_NUM_NODES"):
    on_node = count // nodes
  seen = len(list(filter(None, environ.get("CUDA_VISIBLE_DEVICES", "").split(","))))
  per_task = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]  # "a100:4"
  if on_node == 1 or seen == 1 or (seen and per_task == str(seen)):
    return None
  if not (on_node and seen) or environ.get("JAX_PLATFORMS") == "cpu":
    return local
  if seen % on_node:
    raise errors.UserError(
      f"{on_node} processes cannot share the {seen} GPUs of their node evenly; start "
      "one process per GPU or per node, or give each its GPUs by JAX_LOCAL_DEVICE_IDS"
    )
  each = seen // on_node
  return [local[0] * each + i for i in range(each)]


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
def _watchdog(launch: Launch, timeout: int) -> Iterator[None]:
  """Ends the process if the block takes longer than `timeout` seconds."""
  timer = threading.Timer(timeout, _give_up, (launch, timeout))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _give_up(launch: Launch, seconds: int) -> None:
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
      _all_end("stopped")  # the others may not have seen it
      _leave(signals.status_of(error))
    raise
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    with contextlib.suppress(OSError):  # stderr may be what broke
      terminal.print_exception(error)
      if isinstance(error, jax.errors.JaxRuntimeError):
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
