"""Renders chat templates of strangers: a program, which `template_process` starts.

It loads Jinja and nothing else of size. Requests and replies are JSON after their
length. A rendering that takes too long ends the whole process: the kernel's timer also
works in the middle of a call into C, where no Python code runs.
"""

import datetime
import functools
import json
import random
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import jinja2
from jinja2 import ext, nodes, sandbox, utils

from skipalign_jax.runtime import child_side

_COPIES = 32  # bytes of memory for each byte of a request
_RANDOM = ("random", "lipsum")  # Jinja's names that draw
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def to_bytes(message: dict[str, Any]) -> bytes:
  """The bytes of a message; lone surrogates are kept."""
  return _ENCODE(message).encode("utf-8", "surrogatepass")


def from_bytes(data: bytes) -> dict[str, Any]:
  """The message of bytes."""
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
  mapped, template = child_side.mapped(), ""
  child_side.send(replies, b"")  # ready
  while (data := child_side.receive(requests)) is not None:
    child_side.limit_memory(mapped + _COPIES * len(data))
    request = from_bytes(data)
    if request["template"] is not None:
      template = request["template"]
    child_side.limit_memory(mapped + _COPIES * len(data) + request["bytes"])
    answers = []
    for job in request["jobs"]:
      child_side.limit_seconds(request["seconds"])
      answers.append(answer(template, job))
      child_side.limit_seconds(0)
    try:
      reply = to_bytes({"answers": answers})
    except MemoryError:
      reply = to_bytes({"answers": [{"memory": True}] * len(answers)})
    child_side.send(replies, reply)


if __name__ == "__main__":
  if child_side.begin():
    serve(sys.stdin.buffer, sys.stdout.buffer)
