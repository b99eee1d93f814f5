"""Commands that write files, on tiny models, and what they leave."""

import dataclasses
import hashlib
import importlib
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorstore
import tiny
import tiny_subject

from skipalign_jax.hf import native
from skipalign_jax.runtime import checksums

TEXTS = {
  "config.py": """
from skipalign_jax import config

def get_config(variant=""):
  c = config.tiny(config.default())
  c.data.train, c.data.eval, c.data.seq_len = "builtin:recall:6", "", 128
  c.batch_size, c.steps, c.checkpoint.every = 2, 2, 0
  c.positions.strategy = "contiguous"  # takes least to compile
  if variant == "adapters":
    c.model, c.rope = config.default().model, config.default().rope
    c.data.tokenizer = ""
    c.lora.rank, c.lora.targets = 2, "q,up"
  if variant == "pairs":
    c.data.train, c.loss.kind = "builtin:pairs:6", "dpo"
    c.loss.beta, c.data.seq_len = 0.1, 512
  return c
""",
  "sweep.py": """
import pathlib
from skipalign_jax.sweep import runs

def get_sweep(variant=""):
  config = str(pathlib.Path(__file__).with_name("config.py"))
  table = {"a": runs.Run(config), "b": runs.Run(config, {"seed": 1})}
  keys = {"task": "needle", "lengths": 300, "depths": 1, "max_new_tokens": 2}
  return runs.Sweep("A table", table, {"keys": keys}, "runs/a")
""",
}
Content = dict[str, Any]


def digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def files(folder: pathlib.Path) -> Content:
  """Path → digest of each file, but of locks, which name a process."""
  found = sorted(path for path in folder.rglob("*") if path.is_file())
  return {
    str(p.relative_to(folder)): digest(p.read_bytes())
    for p in found
    if not p.name.endswith(".lock")
  }


def state(folder: pathlib.Path) -> Content:
  """As `files`, and the names of folders and locks."""
  found = {str(path.relative_to(folder)): "" for path in folder.rglob("*")}
  return found | files(folder)


def arrays(item: pathlib.Path) -> Content:
  """The arrays of an item of a checkpoint, whatever its files are called."""
  base = {"driver": "file", "path": f"{item}/"}
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  keys = store.list().result()
  return {key.decode(): digest(store.read(key).result().value) for key in keys}


def model(folder: pathlib.Path) -> Content:
  """What a workdir has as a model."""
  found = {"config": digest((folder / "config.json").read_bytes())}
  found["tokenizer"] = files(folder / native.TOKENIZER)
  for at in native.steps(folder):
    checkpoint = folder / native.CHECKPOINTS / str(at)
    assert not (damage := checksums.damage(checkpoint)), damage
    found[f"step {at}"] = arrays(checkpoint / native.PARAMS)
  return found


def run(folder: pathlib.Path) -> Content:
  """What a workdir has as a run; times and numbers of starts are left out."""
  found = model(folder) | {"records": tiny.records(folder)}
  for at in native.steps(folder):
    checkpoint = folder / native.CHECKPOINTS / str(at)
    found[f"state {at}"] = arrays(checkpoint / "opt")
    found[f"data {at}"] = digest((checkpoint / "data" / "metadata").read_bytes())
  for name in ("positions.png", "steps.json", "reference.safetensors"):
    if (folder / name).exists():
      found[name] = digest((folder / name).read_bytes())
  assert not list(folder.rglob("*.new")), "a temporary file"
  return found


def sweep(folder: pathlib.Path) -> Content:
  """The runs and results of a sweep."""
  found = {f"run {p.name}": run(p) for p in sorted((folder / "rows").iterdir())}
  found |= {path.name: digest(path.read_bytes()) for path in folder.glob("*.*")}
  return found | {"evaluations": files(folder / "evals")}


def nothing_yet(folder: pathlib.Path, whole: Content) -> None:
  """There is no output under its final name, and no other."""
  assert not list(folder.parent.iterdir()), "a partial output"


def some_files(folder: pathlib.Path, whole: Content) -> None:
  """Each file is whole; a file of records may end early."""
  for name, found in files(folder).items():
    assert name in whole, f"{name} is left"
    assert found == whole[name] or name == "records.jsonl", f"{name} is another"


def part_of_a_run(folder: pathlib.Path, whole: Content) -> None:
  """Checkpoints are whole, and so is what makes the folder a workdir."""
  if (folder / "config.json").exists():
    for key, found in model(folder).items():
      assert found in ({}, whole[key]), f"{key} is another"
  assert not list(folder.rglob("*.new")), "a temporary file"


def anything(folder: pathlib.Path, whole: Content) -> None:
  """What is left is judged by the same command's next try."""


@dataclasses.dataclass(frozen=True)
class Command:
  """A command whose output is in `box/out/it`.

  Attributes:
    words: its module and arguments; `{name}` is what it reads; `{out}`, `{cache}`.
    content: of its output.
    part: what a failed command may leave.
    start: the input that the output begins as.
    drop: of this, what is removed first.
    prints: whether the standard output is a result.
    status: where it fails.
    variables: of its environment.
  """

  words: str
  content: Callable[[pathlib.Path], Content] = files
  part: Callable[[pathlib.Path, Content], None] = some_files
  start: str = ""
  drop: tuple[str, ...] = ()
  prints: bool = False
  status: int = 2
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


_NAME = re.compile(r"\{([\w.]+)\}")
_CACHE = "--config.data.cache_dir={cache}"
_TRAIN = f"train --config={{config.py}} --workdir={{out}} {_CACHE}"
_ADAPTERS = _TRAIN.replace(
  "{config.py}", "{config.py}:adapters --config.model.init_from={hf}"
)
_TWO_SAVES = f"{_TRAIN} --config.checkpoint.every=1"
_NEEDLE = (
  "evaluate needle --model={hf} --out={out} --lengths=300,310 --depths=1"
  " --max_new_tokens=2 --distributed=off"
)
_PLAN = "plan --config={config.py} --topology=a100-80gb:2 --search=0"
_SWEEP = "sweep --config={sweep.py} --out={out} --config.data.cache_dir={cache}"
COMMANDS = {
  "train": Command(_TRAIN, run, part_of_a_run),
  "train, caches at home": Command(_TRAIN.replace(_CACHE, ""), run, part_of_a_run),
  "train, adapters": Command(_ADAPTERS, run, part_of_a_run),
  "train, pairs": Command(_TRAIN.replace(".py}", ".py}:pairs"), run, part_of_a_run),
  "resume": Command(_TWO_SAVES, run, part_of_a_run, "run", ("checkpoints/2",)),
  "import": Command("convert import --model={hf} --out={out}", model, nothing_yet),
  "export": Command(
    "convert export --model={hf} --out={out} --max_shard_gb=0.0001", files, nothing_yet
  ),
  "export, peft": Command(
    "convert export --format=peft --model={adapters} --out={out}", files, nothing_yet
  ),
  "generate": Command(
    "generate --model={hf} --prompt=ab --max_new_tokens=3",
    prints=True,
    variables={"JAX_COMPILATION_CACHE_DIR": ""},  # programs are kept at home
  ),
  "evaluate": Command(_NEEDLE),
  "evaluate, resumed": Command(
    _NEEDLE, start="evaluation", drop=("results.json", "needle.png")
  ),
  "compare": Command("evaluate compare {evaluation} --out={out}"),
  "plan": Command(_PLAN + " --out={out}"),
  "distances": Command(
    f"analyze distances --config={{config.py}} {_CACHE} --out={{out}}"
    " --strategies=contiguous"
  ),
  "training": Command("analyze training {run} --out={out}"),
  "show": Command(f"show --config={{config.py}} {_CACHE}", prints=True),
  "sweep --commands": Command(f"{_SWEEP} --commands"),
  "sweep --collect": Command(f"{_SWEEP} --collect", sweep, anything, "rows"),
  "sweep --run": Command(f"{_SWEEP} --run --rows=a", sweep, anything, status=1),
}

# Folders that commands read.
MADE = {
  "run": Command(_TWO_SAVES, run),
  "adapters": COMMANDS["train, adapters"],
  "evaluation": COMMANDS["evaluate"],
  "rows": COMMANDS["sweep --run"],
}


class Box:
  """The folder in which one command works, and what it reads elsewhere.

  Attributes:
    path: of the folder; caches and temporary files are there too.
    out, cache: in it.
  """

  def __init__(self, folder: pathlib.Path, run: Callable[..., tuple[int, str, str]]):
    """`run`: (module, arguments, variables) → (status, standard output and error)."""
    self.path, self._inputs, self._run = folder / "box", folder / "inputs", run
    self.out, self.cache = self.path / "out" / "it", self.path / "cache"
    self._inputs.mkdir(exist_ok=True)
    for name, text in TEXTS.items():
      (self._inputs / name).write_text(text)

  def begin(self, command: Command) -> None:
    """Makes what the command reads; the box has only what its output begins as."""
    self._values(command)
    start = command.start and self._input(command.start)
    shutil.rmtree(self.path, ignore_errors=True)
    for path in (self.out.parent, self.path / "tmp", self.path / "home"):
      path.mkdir(parents=True)
    if start:
      shutil.copytree(start, self.out)
    for name in command.drop:
      path = self.out / name
      shutil.rmtree(path) if path.is_dir() else path.unlink()

  def run(self, command: Command, **how: Any) -> tuple[int, str, str]:
    """(status, standard output, standard error) of the command."""
    values = self._values(command)
    fill = lambda text: _NAME.sub(lambda name: str(values[name[1]]), text)
    module, *arguments = map(fill, command.words.split())
    return self._run(module, arguments, command.variables, **how)

  def content(self, command: Command) -> Content:
    """What a command that ended well has left."""
    found = command.content(self.out) if self.out.exists() else {}
    return found | {"caches": sorted(path.name for path in self.cache.glob("*.*"))}

  def _values(self, command: Command) -> dict[str, pathlib.Path]:
    names = _NAME.findall(command.words)
    read = {name: self._input(name) for name in names if name not in ("out", "cache")}
    return read | {"out": self.out, "cache": self.cache}

  def _input(self, name: str) -> pathlib.Path:
    """A file or folder that commands read; made when it is first needed."""
    path = self._inputs / name
    if path.exists():
      return path
    if name == "hf":
      tiny_subject.folder(path)
    else:
      self.begin(MADE[name])
      status, _, printed = self.run(MADE[name])
      assert not status, printed
      shutil.copytree(self.out, path)
    return path


def main_of(module: str, arguments: list[str]) -> Callable[[], int]:
  """The `main` of a command, with its arguments in sys.argv."""
  name = f"{module}.__main__" if module == "sweep" else module
  main = importlib.import_module(f"skipalign_jax.{name}").main
  sys.argv = [module, *arguments]
  # The default of analyze's is the list that was there when it was imported.
  return (lambda: main(sys.argv)) if module == "analyze" else main
