"""Whether this process is one of several, which one, and the GPUs that are its own."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jax._src import clusters  # what `jax.distributed` asks for an address

from skipalign_jax.runtime import errors

FORMS = "auto, off or HOST:PORT,COUNT,INDEX"


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
    UserError: an invalid flag, or several processes without an address to connect to,
      such as those of torchrun.
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
  if _number(environ, "WORLD_SIZE") > 1 and "RANK" in environ:
    raise errors.UserError(
      "RANK and WORLD_SIZE are set, as torchrun and accelerate do, and JAX does not "
      "read them. On one machine start a single process with python -m: it uses all "
      "GPUs. On several give --distributed=HOST:PORT,COUNT,INDEX; off is one process"
    )
  return None


def _explicit(flag: str) -> Launch | None:
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


def complete(arguments: dict[str, Any], timeout: int) -> dict[str, Any]:
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
  # mpirun in a SLURM job starts its helpers as a step, which is not that of the run.
  if not on_node and (nodes := _number(environ, "SLURM_STEP_NUM_NODES")):
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
