"""Every command of the documentation runs, on tiny models and small files.

A command is changed by the tables below, and by nothing else. What they cannot make
small stands in EXCEPT, with the reason; whatever is in neither fails the fast test.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pyarrow
import pytest
import test_docs
import tiny
from pyarrow import parquet

# A word that matches → what it is here; the first match counts.
SMALL = (
  (r"--config=(configs/(?!llama2_ntk|yi)\w+\.py)", r"--config=\1:tiny", "plan"),
  (r"--config=(configs/\w+\.py)", r"--config=\1:tiny", "train show analyze sweep"),
  (r"--config=(studies/smollm2/\w+\.py)", r"--config=\1:tiny", "sweep"),
  (r"--model=.*", "--model=model", "*"),
  (r"--workdir=.*", "--workdir=workdir", "train"),
  (r"--out=.*", "--out=out", "*"),
  (r"--draws=.*", "--draws=2", "analyze"),
  (r"--lengths=.*", "--lengths=384", "evaluate"),
  (r"--depths=.*", "--depths=2", "evaluate"),
  (r"--data=hub", "--data=longbench", "evaluate"),
  (r"--prompts=FOLDER", "--prompts=prompts", "evaluate"),
  (r"--config\.data\.seq_len=.*", "--config.data.seq_len=256", "train"),
  (r"runs/evals/\w+", r"\g<0>", "evaluate"),
  (r"runs/\w+", "model", "analyze"),
)
# What commands get besides, by their beginning. Of a sweep only some rows are run.
MORE = {
  "train": ["--config.steps=2", "--config.eval.every=0"],
  "generate": ["--max_new_tokens=4"],
  "studies.length": ["--steps=2", "--seeds=2"],
  "studies.needles": ["--micro"],
  "plan": ["--search=0"],
  "evaluate longbench": ["--tasks=qasper"],
  "evaluate facts": ["--lengths=3000", "--samples=1"],
  "evaluate suite": ["--lengths=3600", "--samples=1", "--limit=1"],
  "sweep --config=configs/methods.py:tiny --run": ["--rows=cream,longalign_sorted"],
  "sweep --config=configs/paper_figure4.py:tiny --run": [
    "--rows=yi-6b-200k_skipalign_l=50k_p=0.2"
  ],
  "sweep --config=configs/paper_table1.py:tiny --run": [
    "--rows=llama-2-7b_skipalign,yi-6b-200k_normal-sft"
  ],
  "sweep --config=configs/paper_table2.py:tiny --run": ["--rows=yi-6b-200k_normal-sft"],
  "sweep --config=studies/smollm2/study_a.py:tiny --run": ["--rows=skipalign"],
}
# Files that the folder of a command has; `files` makes them.
FILES = (
  "chats.jsonl", "chats.jsonl.gz", "more.parquet", "book.txt", "book.txt.gz",
  "books.txt.gz", "books.jsonl", "model", "longbench", "prompts",
  "runs/evals/mine", "runs/evals/other", "docs/analysis/distances.json",
)  # fmt: skip
EXCEPT = {
  r"convert verify": "needs PyTorch; `make parity` verifies every kind of reference",
  r"convert export --format=peft": "needs adapters; test_peft.py exports some",
  r"train .*lora\.init_from": "needs an adapter; test_peft.py trains from one",
  r"train .*model\.init_from": "needs that model; test_train.py continues from a run",
  r"evaluate lm_eval": "needs the hub; test_lm_eval.py has these tasks on files",
  r"sweep --config=[\w/]+\.py --run": "trains for hours; its :tiny runs here",
  r"sweep .*--collect": "needs a sweep that ran; it follows each --run here",
}


def documented():
  """(where, module, arguments) of README, docs/, launch/ … and the configs' heads."""
  notebooks = {path.name for path in test_docs.NOTEBOOKS}  # `make colabs` runs them
  texts = [(path.name, path.read_text(encoding="utf-8")) for path in test_docs.TEXTS]
  configs = (tiny.ROOT / "configs").glob("*.py")
  for path in sorted([*configs, tiny.ROOT / "studies/smollm2/study_a.py"]):
    texts.append((path.name, path.read_text(encoding="utf-8").split('"""')[1]))
  assert not notebooks & {name for name, _ in texts}
  return [
    (name, module, words)
    for name, text in texts
    for module, words in test_docs.commands(text)
  ]


def small(module, words):
  """The command as it runs here; None if it is an exception."""
  command = shlex.join([module, *words])
  if any(re.match(pattern, command) for pattern in EXCEPT):
    return None
  changed = []
  for word in words:
    for pattern, to, modules in SMALL:
      if modules == "*" or module in modules.split():
        word, hits = re.subn(rf"^{pattern}$", to, word)
        if hits:
          break
    changed.append(word)
  whole = shlex.join([module, *changed])
  names = [name for name in MORE if re.match(rf"{re.escape(name)}(\s|$)", whole)]
  return (module, *changed, *(word for name in names for word in MORE[name]))


def unknown(command):
  """What a command names and no folder has: a stand-in, a file, a hub's id."""
  found = []
  for word in command[1:]:
    value = word.partition("=")[2] if word.startswith("--") else word
    if word.startswith(("--workdir=", "--out=", "--prompt=", "--change=")):
      continue
    for part in re.sub(r"\*[\d.]+", "", value).split(","):
      is_config = re.fullmatch(r"(configs|studies/\w+)/\w+\.py(:tiny)?", part)
      looks = re.search(r"[/\\]|\.(jsonl|txt|parquet|gz|json)$|^[A-Z_]{2,}$|^hub", part)
      if looks and not is_config and part not in FILES:
        found.append(part)
  return found


def to_run():
  """Command → where it is documented."""
  found = {}
  for where, module, words in documented():
    if command := small(module, words):
      found.setdefault(command, []).append(where)
  return found


def test_every_command_runs_here_or_says_why_not():
  strange = {
    f"{', '.join(where)}: {shlex.join(command)}": unknown(command)
    for command, where in to_run().items()
    if unknown(command)
  }
  assert not strange, f"neither small nor in EXCEPT: {strange}"
  wholes = [shlex.join([module, *words]) for _, module, words in documented()]
  for pattern, reason in EXCEPT.items():
    assert reason and any(re.match(pattern, whole) for whole in wholes), pattern
  assert len(to_run()) > 30


def test_a_new_command_is_noticed():
  for text in (
    "python -m skipalign_jax.train --config=configs/x.py --config.data.train=new.jsonl",
    "python -m skipalign_jax.show --config=configs/x.py --config.data.train=hub:a/b",
    "python -m skipalign_jax.evaluate ruler --model=REF --tokenizer=OTHER",
  ):
    ((module, words),) = test_docs.commands(text)
    assert unknown(small(module, words)), text


def call(folder, command, timeout=900):
  """Runs a command in `folder`; its output."""
  done = subprocess.run(
    [sys.executable, "-m", test_docs.full(command[0]), *command[1:]],
    cwd=folder,
    env=tiny.environment(1)
    | {"PYTHONPATH": str(tiny.ROOT), "COLUMNS": "80", "HOME": str(folder)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=timeout,
  )
  assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
  return done.stdout


def chats(count):
  """Dialogues of three turns, Tülu's columns."""
  turns = lambda i: [
    {"role": ("user", "assistant")[j % 2], "content": f"Turn {j} of dialogue {i}."}
    for j in range(6)
  ]
  return [{"messages": turns(i)} for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A folder with all of FILES: models, results, data."""
  folder = tmp_path_factory.mktemp("files")
  lines = "".join(json.dumps(record) + "\n" for record in chats(40))
  (folder / "chats.jsonl").write_text(lines)
  (folder / "chats.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  parquet.write_table(pyarrow.Table.from_pylist(chats(20)), folder / "more.parquet")
  text = "\n\n".join(
    f"Paragraph {i} says that the river is wide and slow here." for i in range(400)
  )
  (folder / "book.txt").write_text(text)
  for name in ("book.txt.gz", "books.txt.gz"):
    (folder / name).write_bytes(gzip.compress(text.encode()))
  (folder / "books.jsonl").write_text(json.dumps({"text": text}) + "\n")
  record = {
    "input": "How wide is the river?", "context": text[:2000], "answers": ["wide"],
    "length": 300, "dataset": "qasper", "language": "en", "all_classes": None,
    "_id": "1",
  }  # fmt: skip
  (folder / "longbench").mkdir()
  (folder / "longbench/qasper.jsonl").write_text(json.dumps(record) + "\n")
  (folder / "prompts").mkdir()
  for name, value in (("prompt", "{context}\n{input}"), ("maxlen", 8)):
    (folder / f"prompts/dataset2{name}.json").write_text(json.dumps({"qasper": value}))
  for name in ("configs", "studies", "README.md", "launch"):
    (folder / name).symlink_to(tiny.ROOT / name)
  shutil.copytree(tiny.ROOT / "docs/analysis", folder / "docs/analysis")
  config = "--config=configs/smollm2_ntk.py:tiny"
  call(folder, ("train", config, "--workdir=model", "--config.steps=2"))
  call(folder, ("evaluate", "needle", "--model=model", "--lengths=384", "--depths=2",
                "--max_new_tokens=4", "--out=runs/evals/mine"))  # fmt: skip
  shutil.copytree(folder / "runs/evals/mine", folder / "runs/evals/other")
  assert all((folder / name).exists() for name in FILES)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", to_run(), ids=lambda command: shlex.join(command))
def test_runs(files, tmp_path, command):
  for path in files.iterdir():
    os.symlink(path, tmp_path / path.name)
  if any(word.startswith("docs/") for word in command):  # it writes next to a file
    (tmp_path / "docs").unlink()
    shutil.copytree(files / "docs", tmp_path / "docs")
  said = call(tmp_path, command)
  assert "Traceback" not in said and "\x1b" not in said
  for name in ("workdir", "out"):
    if f"--{name}={name}" in command:
      assert list((tmp_path / name).iterdir()), said
  if "--run" in command:
    again = [word for word in command if word != "--run"]
    assert "| " in call(tmp_path, (*again, "--collect"))
