"""LongBench's records and prompts, read from where they are published.

This package contains neither. Records come from the hub's archive or from a folder,
prompts from LongBench's own two files or from the task files of the installed lm_eval.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import pathlib
import re
import string
import zipfile
from collections.abc import Callable
from typing import Any

import jinja2
import yaml

from skipalign_jax.evals.longbench import official
from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors, extras, paths, untrusted

REPOSITORY = "THUDM/LongBench"
ARCHIVE = "data.zip"  # the repository's loading script needs datasets < 4
PROMPTS, LENGTHS = "dataset2prompt.json", "dataset2maxlen.json"
_FIELDS = ("context", "input")  # of a prompt
_MAX_FIELDS = 10  # LongBench's prompts have two at most
_MAX_NEW_TOKENS = 1 << 16  # LongBench's are 512 at most

# The last two: a zip archive with unknown compression, or with a password.
_BROKEN = (*untrusted.BROKEN, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def records(data: str, name: str, limit: int) -> list[dict[str, Any]]:
  """The records of a set, in their order in the file.

  Args:
    data: "hub", a folder with NAME.jsonl or NAME.jsonl.gz, or LongBench's data.zip.
    name: of the set, with _e for LongBench-E.
    limit: reads only so many records, the first ones; 0 reads all.

  Raises:
    UserError: the set is missing, a line is not JSON, or a record cannot be evaluated.
      An empty context is refused too: the official code would evaluate it, but a
      question without its document measures nothing.
  """
  where, file = _open(data, name)
  found: list[dict[str, Any]] = []
  at = 0
  try:
    with file:
      while line := file.readline(untrusted.MAX_RECORD_BYTES + 1):
        at += 1
        if len(line) > untrusted.MAX_RECORD_BYTES:
          raise errors.UserError(
            f"{where}:{at}: longer than {untrusted.MAX_RECORD_BYTES >> 20} MiB"
          )
        if limit and len(found) == limit:
          break
        if line.strip():
          found.append(_parse(f"{where}:{at}", line, name.removesuffix("_e")))
  except errors.UserError:
    raise
  except _BROKEN as error:
    raise errors.UserError(
      f"{where}: cannot be read after line {at} ({error}); the file is damaged, "
      "download it again"
    ) from error
  if not found:
    raise errors.UserError(f"{where} has no records")
  return found


def _open(data: str, name: str) -> tuple[str, io.IOBase]:
  """The name of a set's file for messages, and the file, opened for bytes."""
  path = _download() if data == "hub" else paths.given(data, f"--data={data}")
  try:
    if path.suffix == ".zip" and path.is_file():
      archive = zipfile.ZipFile(path)
      for member in archive.namelist():
        if pathlib.PurePath(member).name == f"{name}.jsonl":
          return f"{path}/{member}", archive.open(member)
      raise errors.UserError(f"--data={data}: {path} has no {name}.jsonl in it")
    for file, read in (
      (path / f"{name}.jsonl", pathlib.Path.open),
      (path / f"{name}.jsonl.gz", gzip.open),
    ):
      if file.is_file():
        return str(file), read(file, "rb")
  except errors.UserError:
    raise
  except _BROKEN as error:
    raise errors.UserError(f"--data={data}: {path} cannot be read: {error}") from error
  if not path.is_dir():
    raise errors.UserError(f"--data={data}: no such folder or .zip file; or give hub")
  raise errors.UserError(
    f"--data={data} has neither {name}.jsonl nor {name}.jsonl.gz; add it, or leave "
    f"{name.removesuffix('_e')} out of --tasks"
  )


def _download() -> pathlib.Path:
  import huggingface_hub  # takes long to load

  with hub.downloading(
    f"--data=hub: {REPOSITORY}/{ARCHIVE}",
    "give --data=FOLDER with the .jsonl files of the sets, or the .zip file",
  ):
    path = huggingface_hub.hf_hub_download(
      REPOSITORY,
      ARCHIVE,
      repo_type="dataset",
      local_files_only=not hub.is_reachable(),
    )
  return pathlib.Path(path)


def _parse(where: str, line: bytes, name: str) -> dict[str, Any]:
  try:
    record = untrusted.parse_json(line)
  except ValueError as error:  # UnicodeDecodeError too
    raise errors.UserError(f"{where}: this line is not JSON ({error})") from error
  if not isinstance(record, dict):
    raise errors.UserError(f"{where}: a record must be a JSON object")
  for key, wanted, fits in (
    ("input", "a text", lambda x: isinstance(x, str)),
    ("context", "a text that is not empty", lambda x: isinstance(x, str) and x.strip()),
    ("answers", "a list of at least one text", _are_texts),
    ("length", "a whole number", lambda x: isinstance(x, int)),
    ("all_classes", "a list of texts", lambda x: name != "trec" or _are_texts(x)),
  ):
    if key not in record:
      raise errors.UserError(f"{where}: the record has no {key!r}; it must be {wanted}")
    if not fits(record[key]):
      raise errors.UserError(
        f"{where}: {key!r} must be {wanted}, not {_short(record[key])}"
      )
  if name == "passage_retrieval_en":
    for answer in record["answers"]:
      if not re.search(r"Paragraph \d", answer):
        raise errors.UserError(f"{where}: {_short(answer)} does not name a paragraph")
  return record


def _are_texts(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(text, str) for text in value)
  )


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + "…"


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The prompts of some sets.

  Attributes:
    source: names their origin; results with prompts of two sources are not compared.
    fill: by set, a function record → text of the prompt.
    max_new_tokens: by set, of the reply.
  """

  source: str
  fill: dict[str, Callable[[dict[str, Any]], str]]
  max_new_tokens: dict[str, int]


def prompts(folder: str, names: list[str]) -> Prompts:
  """Prompts of some sets.

  Args:
    folder: with LongBench's dataset2prompt.json and dataset2maxlen.json; empty for
      the prompts in lm_eval, with LongBench's white space.
    names: of the sets, without _e; LongBench and LongBench-E have the same prompts.

  Raises:
    UserError: files that are missing or cannot be used, or lm_eval is not installed.
  """
  if not folder:
    return _from_lm_eval(names)
  return _official(paths.given(folder, f"--prompts={folder}"), names)


def _official(folder: pathlib.Path, names: list[str]) -> Prompts:
  digest = hashlib.sha256()
  tables = []
  for file, kind in ((PROMPTS, str), (LENGTHS, int)):
    path = folder / file
    try:
      data = untrusted.read(path, untrusted.MAX_JSON_BYTES)
      table = untrusted.parse_json(data)
    except untrusted.BROKEN as error:
      raise errors.UserError(
        f"--prompts={folder}: {path} cannot be read ({error}). Name a folder with "
        f"LongBench's {PROMPTS} and {LENGTHS}"
      ) from error
    for name in names:
      value = table.get(name) if isinstance(table, dict) else None
      if type(value) is not kind or value == "":
        raise errors.UserError(f"{path} has no {kind.__name__} for {name!r}")
      if kind is int and not 1 <= value <= _MAX_NEW_TOKENS:
        raise errors.UserError(
          f"{path}: the length of {name!r} must be from 1 to {_MAX_NEW_TOKENS:,}"
        )
    digest.update(data)
    tables.append(table)
  templates, lengths = tables
  fill = {name: _filler(folder / PROMPTS, name, templates[name]) for name in names}
  return Prompts(
    f"{PROMPTS} {digest.hexdigest()[:8]}", fill, {name: lengths[name] for name in names}
  )


def _filler(
  path: pathlib.Path, name: str, template: str
) -> Callable[[dict[str, Any]], str]:
  """record → prompt of a template in which fields are plain names.

  Not str.format: its format specifications ask for any width, and fields for
  attributes.
  """
  wrong = errors.UserError(
    f"{path}: the prompt of {name!r} cannot be filled; it may have {{context}} and "
    f"{{input}} only, {_MAX_FIELDS} times together, without a format, and other braces "
    "doubled"
  )
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise wrong from error
  fields = [part[1:] for part in parts if part[1] is not None]
  if len(fields) > _MAX_FIELDS or not {*fields} <= {(key, "", None) for key in _FIELDS}:
    raise wrong

  def fill(record: dict[str, Any]) -> str:
    return "".join(
      text + (record[field] if field else "") for text, field, _, _ in parts
    )

  return fill


class _TaskLoader(yaml.SafeLoader):
  """Reads lm_eval's task files, in which metrics are names of functions."""


_TaskLoader.add_constructor("!function", lambda loader, node: node.value)


def _from_lm_eval(names: list[str]) -> Prompts:
  spec = importlib.util.find_spec("lm_eval")
  if spec is None:
    raise errors.UserError(
      f"LongBench's prompts are needed: give --prompts=FOLDER with {PROMPTS} and "
      f"{LENGTHS}, or install lm_eval, which has them: {extras.command('eval')}"
    )
  version = importlib.metadata.version("lm_eval")
  # As lm_eval renders: see its utils.apply_template.
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True
  )

  def filler(text: str) -> official.Fill:
    template = environment.from_string(text)
    # The input is called "question" in its data.
    return lambda record: template.render(
      context=record["context"], question=record["input"]
    )

  fill, lengths = {}, {}
  for name in names:
    path = pathlib.Path(spec.submodule_search_locations[0])
    path = path / "tasks" / "longbench" / f"{name}.yaml"
    try:
      task = yaml.load(path.read_text(encoding="utf-8"), _TaskLoader)
      lengths[name] = int(task["generation_kwargs"]["max_gen_toks"])
      fill[name] = official.with_white_space(name, task["doc_to_text"], filler)
    except (
      OSError,
      yaml.YAMLError,
      jinja2.TemplateError,
      LookupError,
      TypeError,
    ) as error:
      raise errors.UserError(
        f"lm_eval {version}: {path} does not have the prompt of {name!r} where lm_eval "
        f"0.4.13 has it ({error!r}); give --prompts"
      ) from error
  same = all(official.is_official(name, fill[name], lengths[name]) for name in names)
  return Prompts(f"lm_eval {version}{', as in LongBench' * same}", fill, lengths)
