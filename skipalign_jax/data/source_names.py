"""Names of sources: several in one text, their weights, and the files that they mean.

A comma separates sources, `*w` after a name is its weight, and `*`, `?` and `[…]` in a
path are a pattern. A file or folder that exists under the whole text comes first: it is
taken by its name, whatever characters this has.
"""

import glob
import os
import pathlib
import re
import shlex

from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors

FORMS = (
  "builtin:recall[:N], builtin:text[:N], builtin:pairs[:N], hub:NAME[:[CONFIG:]SPLIT], "
  "a .jsonl, .ndjson, .json, .parquet or .txt file (all but .parquet may be .gz), a "
  "folder of them or of datasets' save_to_disk, or a pattern such as chats/*.jsonl; *w "
  "after it repeats it w times per epoch"
)
TEXTS = (".txt", ".txt.gz")  # one document per file
_LINES = (".jsonl", ".ndjson", ".json")  # a record per line, or a list of records
TABLES = (".parquet", ".arrow")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_LINES, *(f"{suffix}.gz" for suffix in _LINES), *TABLES, *TEXTS)
# What datasets' save_to_disk writes besides .arrow files. Others have such files for
# other purposes, so these are only read together.
_SAVED, _SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"
# Words that say, first or last in the name of a file or folder, of which split it is.
_TRAIN, _HELD_OUT = "train", {"test", "validation", "valid", "val", "dev", "eval"}
_WEIGHT = re.compile(r"(.+)\*([-+.0-9eE]+|nan|inf)", re.DOTALL)
_REMOTE = ("builtin:", hub.PREFIX)


def split(spec: str) -> list[str]:
  """The sources in a text; of what a comma separates, existing names stay whole."""
  parts, found = spec.split(","), []
  while parts:
    count = next(n for n in range(len(parts), 0, -1) if n == 1 or _exist(parts[:n]))
    found.append(",".join(parts[:count]).strip())
    parts = parts[count:]
  return found


def _exist(parts: list[str]) -> bool:
  text = ",".join(parts).strip()
  return _is_path(text) or _is_path(_weighted(text)[0])


def weigh(text: str) -> tuple[str, float]:
  """The name of a source and its weight, 1 if it has none.

  Raises:
    UserError: the weight is not a number above 0 and below 1000.
  """
  name, weight = (text, "1") if _is_path(text) else _weighted(text)
  remote = name.startswith(_REMOTE)
  try:
    number = float("nan" if remote and "*" in name else weight)
  except ValueError:
    number = float("nan")
  if not 0 < number < 1000:
    raise errors.UserError(
      f"data source {text!r}: the weight after * must be a number above 0 and below "
      "1000"
    )
  return name, number


def _weighted(text: str) -> tuple[str, str]:
  match = _WEIGHT.fullmatch(text)
  return (match[1], match[2]) if match else (text, "1")


def _is_path(text: str) -> bool:
  return bool(text) and os.path.exists(os.path.expanduser(text))


def files_of(name: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """The data files that a name means, sorted, and other files found with them.

  One file, those of a folder and of its folders, or those of a pattern. Names that
  begin with a dot do not count.

  Raises:
    UserError: there is no data file, or a folder has those of several splits.
  """
  path = pathlib.Path(os.path.expanduser(name))
  if name and path.is_dir():  # "" would be this folder
    found = _of_folder(path)
    _check_splits(path)
  elif path.exists() or not glob.has_magic(name):
    found = [path]
  else:
    # A pattern with ** twice finds a file once for each way that leads to it.
    found = [pathlib.Path(one) for one in {*glob.glob(str(path), recursive=True)}]
  is_data = _is_known if found == [path] else _is_data
  files = [one for one in found if is_data(one) and one.is_file()]
  if name and path.is_dir():
    _check_names(path, sorted(files))
  if files:
    return sorted(files), sorted(set(found) - set(files))
  if (name and path.is_dir()) or glob.has_magic(name):
    problem = f"finds no data file ({', '.join(SUFFIXES)})"
  elif _is_known(path):
    problem = "no such file"
  elif path.suffix.lower() in _DELIMITERS and path.is_file():
    problem = (
      f"{path.suffix} files are not read; write it as .jsonl:\n{_to_jsonl(path)}"
    )
  else:
    raise errors.UserError(f"data source {name!r} is unknown; give {FORMS}")
  raise errors.UserError(f"data source {name}: {problem}")


def _to_jsonl(path: pathlib.Path) -> str:
  """A command that writes a table as .jsonl next to it, each cell as text."""
  delimiter = _DELIMITERS[path.suffix.lower()]
  code = (
    "import csv, json, sys; csv.field_size_limit(1 << 30); "
    "[print(json.dumps(row)) for row in csv.DictReader(open(sys.argv[1], newline='', "
    f"encoding='utf-8-sig'), delimiter={delimiter!r})]"
  )
  file, new = (shlex.quote(str(one)) for one in (path, path.with_suffix(".jsonl")))
  return f'python -c "{code}" {file} > {new}'


def _is_known(path: pathlib.Path) -> bool:
  return path.name.lower().endswith(SUFFIXES)


def _is_data(path: pathlib.Path) -> bool:
  """Whether a file of a folder or a pattern is data, and not about data."""
  is_arrow = path.suffix.lower() == ".arrow"
  if is_arrow or path.name in _SAVED:
    return is_arrow == all(path.with_name(name).is_file() for name in _SAVED)
  return _is_known(path) and path.name != _SPLITS


def _check_splits(path: pathlib.Path) -> None:
  """Raises UserError for a saved data set with several splits, test data among them."""
  if (path / _SPLITS).is_file():
    splits = sorted(one.name for one in path.iterdir() if one.is_dir())
    if len(splits) > 1:
      raise errors.UserError(
        f"data source {path} has the splits {', '.join(splits)}; name the folder of "
        f"one, such as {path / splits[-1]}"
      )


def _check_names(path: pathlib.Path, files: list[pathlib.Path]) -> None:
  """Raises UserError if a folder has training and test data side by side.

  As downloads of the hub's data sets have: data/train-00000-of-00002.parquet and
  data/test-00000-of-00001.parquet.
  """
  splits: dict[str, pathlib.Path] = {}
  for file in files:
    words = set().union(*map(_words, file.relative_to(path).parts))
    words &= {_TRAIN, *_HELD_OUT}
    if len(words) == 1:
      splits.setdefault(words.pop(), file)
  others = sorted(_HELD_OUT & splits.keys())
  if _TRAIN not in splits or not others:
    return
  parts = splits[_TRAIN].relative_to(path).parts
  depth = next(i for i, part in enumerate(parts) if _TRAIN in _words(part))
  one = path.joinpath(*parts[: depth + 1])
  one = one if depth < len(parts) - 1 else one.with_name(f"*{_TRAIN}*")
  raise errors.UserError(
    f"data source {path} has files of the splits {_TRAIN} and {', '.join(others)} "
    f"({splits[others[0]]}); name those of one, by a folder or a pattern such as {one}"
  )


def _words(name: str) -> set[str]:
  """The first and the last word in the name of a file or folder, without its number."""
  name = re.sub(r"-\d+-of-\d+.*", "", name.lower()).partition(".")[0]
  words = re.findall("[a-z]+", name)
  return {*words[:1], *words[-1:]}


def _of_folder(path: pathlib.Path) -> list[pathlib.Path]:
  found, seen = [], set()
  for folder, folders, names in os.walk(path, followlinks=True):
    if (real := os.path.realpath(folder)) in seen:  # links can go round in circles
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [one for one in folders if not one.startswith(".")]
    found += [pathlib.Path(folder, one) for one in names if not one.startswith(".")]
  return found
