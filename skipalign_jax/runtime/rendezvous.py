"""The processes of one run find each other before JAX connects them.

JAX's coordination service takes every process that knows its port, and ends a run one
of whose processes seems to start a second time. So process 0 first listens on that port
itself: it waits for the processes of its own run, refuses others, and then leaves the
port to JAX. A process that comes later finds JAX there and is refused too.
"""

import contextlib
import dataclasses
import errno
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from skipalign_jax.runtime import errors, untrusted

_GREETING = "skipalign_jax"  # what process 0 says to each process that comes
_GO = "go"
_OTHER_PORT = "give each run its own port, and all processes of a run the same command"
_ANSWER_SECONDS = 5.0  # for one answer of another process
_TAKEN_SECONDS = 15.0  # for a taken port to become free: failed runs end within 10 s
_RETRY_SECONDS = 0.2
_MAX_LINE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Process:
  """One process of a run.

  Attributes:
    address: HOST:PORT of process 0.
    count: number of processes.
    index: of this one.
    run: what only processes of the same run have, such as the path of their workdir.
  """

  address: str
  count: int
  index: int
  run: str


class _NotOursError(Exception):
  """Something else than process 0 of a run that begins is on the port."""


def meet(me: Process, timeout: float) -> None:
  """Returns when all processes of the run are there and the port is free for JAX.

  Raises:
    UserError: the port belongs to another run or program, or not all processes came in
      time.
  """
  deadline = time.monotonic() + timeout
  if me.index:
    came = _join(me, deadline)
    missing = [] if came else [0]
  else:
    with _listen(me) as listener:
      missing = _gather(listener, me, deadline)
  if missing:
    others = ", ".join(map(str, missing))
    raise errors.UserError(
      f"{me.count} processes are expected at {me.address}, but after {timeout:.0f} s "
      f"process {me.index} still waits for {others}. Check that all were started, and "
      "that the address is that of process 0, with a port that is free and open"
    )


def _listen(me: Process) -> socket.socket:
  """Process 0's socket on the port of the run, as soon as it is free."""
  given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
  host, port = _split(given or me.address)
  host = host if given else ""  # all addresses, as JAX
  both = not host and socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
  until = time.monotonic() + _TAKEN_SECONDS
  while True:
    try:
      return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
      if error.errno != errno.EADDRINUSE or time.monotonic() > until:
        raise errors.UserError(
          f"process 0 cannot listen on port {port} ({os.strerror(error.errno)}); is it "
          f"that of another run? {_OTHER_PORT}"
        ) from error
      time.sleep(_RETRY_SECONDS)


def _gather(listener: socket.socket, me: Process, deadline: float) -> list[int]:
  """Lets the other processes of the run continue when all are there.

  Returns:
    Those that did not come in time.
  """
  present: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    while missing := [i for i in range(1, me.count) if not _waits(present.get(i))]:
      if (left := deadline - time.monotonic()) <= 0:
        return missing
      listener.settimeout(left)
      with contextlib.suppress(OSError):
        connection = stack.enter_context(listener.accept()[0])
        if (index := _admit(connection, me, present)) is None:
          connection.close()
        else:
          present[index] = connection
    for connection in present.values():
      with contextlib.suppress(OSError):
        _send(connection, _GO)
        connection.recv(1)  # it closes first, so that the port is free at once
  return []


def _waits(connection: socket.socket | None) -> bool:
  """Whether the other side is there; it says nothing, so that an answer is its end."""
  if connection is None:
    return False
  waiting = select.poll()
  waiting.register(connection, select.POLLIN)
  return not waiting.poll(0)


def _admit(
  connection: socket.socket, me: Process, present: dict[int, socket.socket]
) -> int | None:
  """The index of a process of the run; None where another one came."""
  connection.settimeout(_ANSWER_SECONDS)
  _send(connection, _GREETING)
  try:
    other = _receive(connection)
    if refused := _refusal(me, other, present):
      _send(connection, refused)
      return None
    return int(other["index"])
  except (OSError, ValueError, LookupError, TypeError):
    return None  # a stranger, who does not speak like us


def _refusal(
  me: Process, other: dict[str, Any], present: dict[int, socket.socket]
) -> str:
  """Why a process is not of this run; empty if it is."""
  if other["run"] != me.run:
    return f"another run uses {me.address}: there {me.run}, here {other['run']}"
  if other["count"] != me.count:
    return (
      f"process 0 expects {me.count} processes, process {other['index']} expects "
      f"{other['count']}"
    )
  if not 0 < other["index"] < me.count or _waits(present.get(other["index"])):
    return f"process {other['index']} of this run is already there"
  return ""


def _join(me: Process, deadline: float) -> bool:
  """Waits until process 0 lets all continue; False if it did not in time."""
  taken_since = None
  while (now := time.monotonic()) < deadline:
    try:
      if _has_gone(me, deadline):
        return True
    except _NotOursError as error:
      taken_since = taken_since or now
      if now - taken_since > _TAKEN_SECONDS:
        raise errors.UserError(
          f"{me.address} is used by a run that has already begun, or by another "
          f"program; {_OTHER_PORT}"
        ) from error
    except OSError:  # nothing is there yet
      taken_since = None
    time.sleep(_RETRY_SECONDS)
  return False


def _has_gone(me: Process, deadline: float) -> bool:
  """Waits for process 0's word; False if it has ended meanwhile."""
  with _connected(me, deadline) as connection:
    _send(connection, dataclasses.asdict(me))
    connection.settimeout(max(deadline - time.monotonic(), 0.01))
    answer = _receive(connection)
  if answer not in (_GO, None):
    raise errors.UserError(f"{answer}; {_OTHER_PORT}")
  return answer == _GO


@contextlib.contextmanager
def _connected(me: Process, deadline: float) -> Iterator[socket.socket]:
  """A connection to process 0, which has sent its greeting."""
  seconds = min(_ANSWER_SECONDS, max(deadline - time.monotonic(), 0.01))
  with socket.create_connection(_split(me.address), seconds) as connection:
    try:
      greeting = _receive(connection)
    except (OSError, ValueError) as error:
      raise _NotOursError from error
    if greeting != _GREETING:
      raise _NotOursError
    yield connection


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _send(connection: socket.socket, value: Any) -> None:
  connection.sendall(json.dumps(value).encode("utf-8") + b"\n")


def _receive(connection: socket.socket) -> Any:
  """What the other side sent; None if it has ended, ValueError if it is not JSON."""
  line = b""
  while not line.endswith(b"\n"):
    if not (part := connection.recv(1)):
      return None
    line += part
    if len(line) > _MAX_LINE:
      raise ValueError("too long")
  return untrusted.parse_json(line)
