"""Runs one program of a stranger, and ends all that it started: a program itself.

`code_eval` starts it and sends a request. The program runs below this process,

    this process, which watches -> the new namespaces' maker -> their first process
      -> the program -> whatever it starts

and where the system has no such namespaces for us,

    this process, which watches -> the program -> whatever it starts.

When the first process of a PID namespace ends, the kernel ends all others of it.
Without one, what loses its parent becomes a child of this process, which ends its
children until none is left.
"""

import contextlib
import ctypes
import fcntl
import json
import math
import os
import pathlib
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

INTERVAL = 0.05  # seconds between looks at the processes
_PARENT_DEATH, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 36, 38  # of prctl
_CLONE = {"mount": 0x20000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000}
_CLONE_NET = 0x40000000
_PRIVATE, _SAFE = 1 << 18 | 1 << 14, 2 | 4  # MS_PRIVATE|MS_REC; nosuid, nodev
_MOUNT_SETATTR, _RECURSIVE, _HERE = 442, 0x8000, -100
_CAPABILITIES = 0x20080522  # version 3
_UP = 0x8914  # SIOCSIFFLAGS
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
  """A function of the C library; OSError where it fails."""
  if getattr(_libc, name)(*arguments) < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{name}: {os.strerror(number)}")


def _end_with_parent() -> None:
  _call("prctl", _PARENT_DEATH, signal.SIGKILL)


def _enter_namespaces(folder: str, size: int) -> list[str]:
  """Moves this process, and for PIDs its children, out of the user's system.

  Args:
    folder: becomes an empty file system in memory, the only one that can be written.
    size: of it, in bytes.

  Returns:
    What else is closed to the program: "network", "files".

  Raises:
    OSError: there are no such namespaces, or they are not for us.
  """
  user, group = os.geteuid(), os.getegid()
  _call("unshare", sum(_CLONE.values()))
  pathlib.Path("/proc/self/setgroups").write_text("deny")
  pathlib.Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
  pathlib.Path("/proc/self/gid_map").write_text(f"1000 {group} 1")
  _call("mount", None, b"/", None, _PRIVATE, None)
  held = []
  with contextlib.suppress(OSError):
    _call("unshare", _CLONE_NET)
    held.append("network")
    _start_loopback()
  with contextlib.suppress(OSError):  # Linux 5.12
    read_only = struct.pack("QQQQ", 1, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _HERE, b"/", _RECURSIVE, read_only, 32)
    held.append("files")
  _mount_memory(os.fsencode(folder), size)
  if os.path.isdir("/dev/shm"):
    _mount_memory(b"/dev/shm", size)
  return held


def _mount_memory(where: bytes, size: int) -> None:
  options = f"size={size},nr_inodes=100000,mode=700".encode()
  _call("mount", b"tmpfs", where, b"tmpfs", _SAFE, options)


def _start_loopback() -> None:
  """127.0.0.1, which a new network does not have."""
  with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, _UP, struct.pack("16sH22x", b"lo", 1))


def _hide_processes() -> None:
  """In the first process: /proc shows its namespace only, or nothing."""
  try:
    _call("mount", b"proc", b"/proc", b"proc", _SAFE | 8, None)
  except OSError:  # where parts of /proc are hidden already, as in containers
    _mount_memory(b"/proc", 4096)


def _drop_privileges() -> None:
  """The maker of a namespace may do all in it, and its children too."""
  _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
  _call("capset", struct.pack("Ii", _CAPABILITIES, 0), bytes(24))


def _contained(run: Callable[[], None], status: int, request: dict[str, Any]) -> None:
  """In a child: calls `run` in namespaces; writes to `status` before it does."""
  _end_with_parent()
  try:
    held = _enter_namespaces(request["folder"], request["files"])
  except (OSError, AttributeError):  # AttributeError: another C library
    return
  if first := os.fork():
    os.close(status)
    os.waitpid(first, 0)
    return
  _end_with_parent()
  _hide_processes()
  os.write(status, json.dumps(["processes", *held]).encode())
  os.close(status)
  if program := os.fork():
    while os.wait()[0] != program:  # it has the orphans of the namespace too
      pass
    return
  _drop_privileges()
  run()


def _plain(run: Callable[[], None], status: int, _: dict[str, Any]) -> None:
  """In a child: calls `run`."""
  _end_with_parent()
  os.write(status, b"[]")
  os.close(status)
  run()


def _execute(request: dict[str, Any], writing: int) -> None:
  """In a child: runs the program; if it comes to its end, writes the proof."""
  null = os.open("/dev/null", os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  os.closerange(3, writing)
  os.closerange(writing + 1, 256)
  os.chdir(request["folder"])
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
  cpu = (math.ceil(request["seconds"]) + 1) * (os.cpu_count() or 1)
  for kind, most in (
    (resource.RLIMIT_AS, request["memory"]),
    (resource.RLIMIT_FSIZE, request["files"]),
    (resource.RLIMIT_CPU, cpu),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NPROC, request["threads"]),
  ):
    hard = resource.getrlimit(kind)[1]
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (limit, limit))
  write, proof = os.write, bytes.fromhex(request["proof"])
  exec(request["program"].encode(errors="replace"), {})
  write(writing, proof)


def _fork(function: Callable[..., None], *arguments: Any) -> int:
  """The process id of a child that calls the function and then exits."""
  leave = os._exit
  if child := os.fork():
    return child
  try:
    function(*arguments)
  finally:
    leave(0)


def _stats() -> Iterator[tuple[int, list[str]]]:
  """Each process of the system, and the fields of its stat file from the state on."""
  for name in os.listdir("/proc"):
    if name.isdigit():
      with contextlib.suppress(OSError):  # it has ended
        text = pathlib.Path(f"/proc/{name}/stat").read_text(errors="replace")
        yield int(name), text.rpartition(")")[2].split()


def _children(process: int) -> list[int]:
  """Those of all its threads, read fast enough for processes that live shortly."""
  found = []
  with contextlib.suppress(ProcessLookupError):  # it ends
    for thread in os.listdir(f"/proc/{process}/task"):
      fd = os.open(f"/proc/{process}/task/{thread}/children", os.O_RDONLY)
      try:
        while part := os.read(fd, 1 << 16):
          found.append(part)
      finally:
        os.close(fd)
  return [int(number) for number in b"".join(found).split()]


def _children_by_scan() -> dict[int, list[int]]:
  """The children of each process, where the kernel has no lists of them."""
  children: dict[int, list[int]] = {}
  for process, fields in _stats():
    children.setdefault(int(fields[1]), []).append(process)
  return children


def _descendants() -> Iterator[int]:
  """The processes below this one."""
  me, children_of = os.getpid(), _children
  if not os.path.exists(f"/proc/{me}/task/{me}/children"):
    scanned = _children_by_scan()
    children_of = lambda process: scanned.get(process, [])
  waiting = [me]
  while waiting:
    with contextlib.suppress(FileNotFoundError):  # it has ended
      found = children_of(waiting.pop())
      yield from found
      waiting += found


def _threads() -> int:
  """How many threads this user has."""
  total = 0
  for process, fields in _stats():
    with contextlib.suppress(OSError):
      if os.stat(f"/proc/{process}").st_uid == os.getuid():
        total += int(fields[17])
  return total


def _memory(process: int) -> int:
  """Bytes of a process that are in memory."""
  with contextlib.suppress(OSError, IndexError):
    text = pathlib.Path(f"/proc/{process}/statm").read_text()
    return int(text.split()[1]) * resource.getpagesize()
  return 0


def _watch(child: int, request: dict[str, Any]) -> str:
  """Waits for the child's end or a limit; "ended", "timed out" or "failed"."""
  end, pause = time.monotonic() + request["seconds"], INTERVAL
  while (left := end - time.monotonic()) > 0:
    signal.sigtimedwait({signal.SIGCHLD}, min(pause, left))
    with contextlib.suppress(ChildProcessError):
      while (ended := os.waitpid(-1, os.WNOHANG)[0]) not in (0, child):
        pass
      if ended == child:
        return "ended"
    begin = time.monotonic()
    processes = list(_descendants())
    if len(processes) > request["processes"]:
      return "failed"
    if sum(map(_memory, processes)) > request["memory"]:
      return "failed"
    pause = max(INTERVAL, 10 * (time.monotonic() - begin))
  return "timed out"


def _end_all() -> None:
  """Ends all processes below this one.

  They are stopped first: what is stopped starts no other, and leaves the processors to
  those that must end.
  """
  stopped: set[int] = set()
  while new := set(_descendants()) - stopped:
    stopped |= new
    _signal(new, signal.SIGSTOP)
  with contextlib.suppress(ChildProcessError):
    while True:
      _signal(_descendants(), signal.SIGKILL)
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
      signal.sigtimedwait({signal.SIGCHLD}, INTERVAL)


def _signal(processes, number: int) -> None:
  for process in processes:
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, number)


def run(request: dict[str, Any]) -> dict[str, Any]:
  """Runs a program.

  Args:
    request: the program, a proof in hexadecimal digits, a folder; seconds, and bytes of
      memory, bytes of files, processes and threads that it may use.

  Returns:
    outcome: "passed", "failed" or "timed out"; contained: what the program could not
    reach, of "processes", "network" and "files".
  """
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
  _call("prctl", _SUBREAPER, 1)
  with contextlib.suppress(PermissionError):  # then no crowd of others keeps it waiting
    first = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(0, first, os.sched_param(1))
  request = {**request, "threads": _threads() + request["threads"]}
  for way in (_contained, _plain):
    reading, writing = os.pipe()
    status, status_of_child = os.pipe()
    execute = lambda fd=writing: _execute(request, fd)
    child = _fork(way, execute, status_of_child, request)
    os.close(writing)
    os.close(status_of_child)
    with open(status, "rb") as file:
      held = file.read()
    if held:
      break
    os.close(reading)
    os.waitpid(child, 0)
  _call("prctl", _DUMPABLE, 0)  # closes its memory and files to others of this user
  outcome = _watch(child, request)
  _end_all()
  if outcome == "ended":
    os.set_blocking(reading, False)
    outcome = "failed"
    with contextlib.suppress(BlockingIOError):
      if os.read(reading, 1 << 16) == bytes.fromhex(request["proof"]):
        outcome = "passed"
  return {"outcome": outcome, "contained": json.loads(held)}


def main(parent: int) -> None:
  """Reads a request from standard input and prints the result."""
  _end_with_parent()
  if os.getppid() == parent:
    print(json.dumps(run(json.load(sys.stdin.buffer))))


if __name__ == "__main__":
  main(int(sys.argv[1]))
