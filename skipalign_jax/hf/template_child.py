"""Renders chat templates of strangers: a program, which `template_process` starts.

It loads Jinja and nothing else of size. Requests and replies are JSON after their
length. A rendering that takes too long ends the whole process: the kernel's timer also
works in the middle of a call into C, where no Python code runs.
"""

import ctypes
import datetime
import functools
import json
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import jinja2
from jinja2 import ext, nodes, sandbox, utils

LENGTH = struct.Struct("!Q")
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_COPIES = 32  # bytes of memory for each byte of a request
_RANDOM = ("random", "lipsum")  # Jinja's names that draw
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def to_bytes(message: dict[str, Any]) -> bytes:
  """A message with its length before it; lone surrogates are kept."""
  data = _ENCODE(message).encode("utf-8", "surrogatepass")
  return LENGTH.pack(len(data)) + data


def from_bytes(data: bytes) -> dict[str, Any]:
  """The message in what follows the length."""
  return json.loads(data.decode("utf-8", "surrogatepass"))


class _Generation(ext.Extension):
  """The block `generation`, which marks replies for others and changes no text."""

  tags = {"generation"}  # noqa: RUF012

  def parse(self, parser: Any) -> nodes.Node:
    """The block, as Jinja asks for it."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("same"), [], [], body).set_lineno(line)

  def same(self, caller: Any) -> str:
    """The text of the block."""
    return caller()


class _Dict:
  """The function `dict`, without the attributes of the type."""

  def __call__(self, *args: Any, **values: Any) -> dict:
    return dict(*args, **values)

  def fromkeys(self, *args: Any) -> dict:
    """As that of the type."""
    return dict.fromkeys(*args)


class _Namespace(utils.Namespace):
  """Jinja's namespace; names that begin with an underscore are refused."""

  def __init__(*args: Any, **values: Any) -> None:  # a value may be called self
    self, *rest = args
    attributes = dict(*rest, **values)
    for name in attributes:
      _check_name(name)
    utils.Namespace.__init__(self, attributes)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, value)


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith("_"):
    raise jinja2.exceptions.SecurityError(f"{name!r} cannot be set in a namespace")


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
  """The template in an environment like that of transformers."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(
    form
  )
  environment.globals["dict"] = _Dict()
  environment.globals["namespace"] = _Namespace
  return environment.from_string(template)


def answer(template: str, job: Mapping[str, Any]) -> dict[str, Any]:
  """One text, or why there is none.

  Args:
    template: its text.
    job: variables, and the characters of the longest text.

  Returns:
    One of text; error, of the template; memory; length, of a text that is too long.
  """
  if any(name in template for name in _RANDOM):
    random.seed(0)  # what a template draws is always the same
  try:
    text = compiled(template).render(**job["variables"])
    return {"text": text} if len(text) <= job["characters"] else {"length": len(text)}
  except MemoryError:
    return {"memory": True}
  except jinja2.TemplateError as error:
    return {"error": str(error)[:2000]}
  except Exception as error:  # division by zero, a missing key, endless recursion …
    return {"error": f"{type(error).__name__}: {error}"[:2000]}


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
  """Replies to requests until their end.

  A request has jobs, the seconds that each may take, bytes of memory, and a template,
  or None for that of the request before; a reply has the answers.
  """
  with open("/proc/self/statm", encoding="ascii") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
  template = ""
  _send(replies, {})  # ready
  while head := requests.read(LENGTH.size):
    (length,) = LENGTH.unpack(head)
    _limit_memory(mapped + _COPIES * length)
    request = from_bytes(requests.read(length))
    if request["template"] is not None:
      template = request["template"]
    _limit_memory(mapped + _COPIES * length + request["bytes"])
    answers = []
    for job in request["jobs"]:
      signal.setitimer(signal.ITIMER_PROF, request["seconds"])
      answers.append(answer(template, job))
      signal.setitimer(signal.ITIMER_PROF, 0)
    try:
      _send(replies, {"answers": answers})
    except MemoryError:
      _send(replies, {"answers": [{"memory": True}] * len(answers)})


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
  data = to_bytes(message)
  replies.write(data)
  replies.flush()


def _limit_memory(limit: int) -> None:
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  if hard != resource.RLIM_INFINITY:
    limit = min(limit, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main(parent: int, ends_with_parent: bool) -> None:
  """Serves on standard input and output.

  Args:
    parent: the id of the process that started this one.
    ends_with_parent: whether the kernel ends this process with the thread that
      started it.
  """
  # Signals of a terminal or a scheduler are for the parent, which may still need texts.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  if ends_with_parent:
    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
  if os.getppid() != parent:
    return
  for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    resource.setrlimit(kind, (0, 0))
  serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
  main(int(sys.argv[1]), sys.argv[2] == "True")
