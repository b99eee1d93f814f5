"""A path is a name, for every library: it works as it is or is refused at once."""

import contextlib
import io
import multiprocessing
import os
import pathlib
import re
import shutil
import sys
from concurrent import futures

import jax
import numpy as np
import pytest
import random_paths
import tiny
import tiny_files
from saved_states import restore, save_all

from skipalign_jax import convert, train
from skipalign_jax.hf import native, reference
from skipalign_jax.runtime import errors, paths
from skipalign_jax.training import checkpoint

DEEP = "1/2/3/4/5/6"  # as many parents as a name of `random_paths` can go up


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
  """`~` is an empty folder; and the current folder is what it was."""
  monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
  monkeypatch.chdir(".")


def may_be_refused(name):
  return (
    re.search(r"[\[*?\\\0\ud800-\udfff]|gs:/|gs:$|^~|^hub:|^[a-z0-9]+://", name)
    or max(len(part.encode()) for part in name.split("/")) > 200
    or not name
  )


def test_a_path_means_the_same_when_it_is_given_again(tmp_path, monkeypatch):
  home = tmp_path / "home"
  (home / "deep").mkdir(parents=True)
  (tmp_path / "link").symlink_to(home / "deep")
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(tmp_path)
  expected = {
    "a": "a", "./a": "a", "a//b/": "a/b", "~/a": home / "a", "~": home,
    "./~x": tmp_path / "~x", "../a": tmp_path.parent / "a", "b/../a": tmp_path / "a",
    "link/../a": home / "a", "./hub:a": tmp_path / "hub:a",
  }  # fmt: skip
  for text, path in expected.items():
    assert str(paths.given(text, text)) == str(path)
    assert paths.given(paths.given(text, text), text) == pathlib.Path(path)
  with pytest.raises(errors.UserError, match=r"write the whole path, or \./~nobody_/a"):
    paths.given("~nobody_/a", "--out=~nobody_/a")
  with pytest.raises(errors.UserError, match=r"write \./hub:a/b for a folder"):
    paths.output("hub:a/b", "--out=hub:a/b")
  with pytest.raises(errors.UserError, match=r"mount it .* \./s3://b/a for a folder"):
    paths.output("s3://b/a", "--out=s3://b/a")


def files_below(base):
  return [path for path in base.rglob("*") if not path.is_dir()]


def checked(name):
  """The workdir of that name; None where it is refused."""
  try:
    folder = paths.output(name, f"--workdir={name}")
    checkpoint.check_path(folder)
  except errors.UserError as error:
    assert "--workdir" in str(error)
    return None
  return folder


def try_name(number, name, base):
  """Whether a checkpoint was saved and opened there; AssertionError if elsewhere."""
  inner = base / DEEP
  inner.mkdir(parents=True)
  os.chdir(inner)
  name = f"{inner}{name}" if name.startswith("/") else name
  if (folder := checked(name)) is None:
    assert may_be_refused(name)
    assert not files_below(base)
    return False
  target = pathlib.Path(os.path.normpath(folder.absolute()))
  if base not in target.parents:
    assert name.startswith("~")  # a home folder, as everywhere
    return False
  save_all(folder, {number: None}, keep=1, keep_best=False)
  found, iterator = restore(folder, number)
  weight = native.open_arrays(folder, number, {"norm/weight": (2000,)})
  weight = weight["norm/weight"].read()
  np.testing.assert_array_equal(found.params["norm"]["weight"], weight)
  assert weight[1] == number and iterator == {"next": number}
  written = files_below(base)
  assert written and all(target / "checkpoints" in path.parents for path in written)
  return True


def try_all(names, root):
  saved, wrong = 0, []
  for number, name in enumerate(names, 1):
    try:
      saved += try_name(number, name, root / str(number))
    except Exception as error:
      wrong.append((name, repr(error)[:300]))
  print(f"{saved} saved and opened, {len(names) - saved} refused, {len(wrong)} wrong")
  assert not wrong, wrong
  return saved


def test_a_checkpoint_is_where_its_name_says(tmp_path):
  assert try_all(random_paths.names(30), tmp_path) > 15


@pytest.mark.slow
def test_two_thousand_checkpoints_are_where_their_names_say(tmp_path):
  names = random_paths.names(2000, seed=1)
  halves = (names[::2], names[1::2]), (tmp_path / "0", tmp_path / "1")
  spawn = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(2, spawn) as pool:
    assert sum(pool.map(try_all, *halves)) > 1000


OVERRIDES = {"steps": 2, "checkpoint.every": 1, "data.eval": "", "batch_size": 1}


def command(main, *argv):
  """(status, what it printed) of a command in this process."""
  printed = io.StringIO()
  with (
    contextlib.redirect_stdout(printed),
    contextlib.redirect_stderr(printed),
    pytest.MonkeyPatch.context() as patched,
    pytest.raises(SystemExit) as ended,
  ):
    patched.setattr(sys, "argv", ["command", *argv])
    errors.run_command(main)
  return ended.value.code, printed.getvalue()


class Place:
  """An empty folder that is the current one; `written` is what is below it."""

  def __init__(self, base):
    self.base, self.inner = base, base / DEEP
    self.inner.mkdir(parents=True)
    os.chdir(self.inner)

  def target(self, name):
    return pathlib.Path(os.path.normpath(self.inner / name))

  def check(self, name, ended):
    """Whether the command worked, in that folder only; else that it was refused."""
    status, printed = ended
    written = files_below(self.base)
    assert "Traceback" not in printed, printed
    if status:
      assert status == 2 and printed.count("error: ") == 1, printed
      assert may_be_refused(name) and not written, printed
      return False
    assert written and all(self.target(name) in path.parents for path in written)
    return True


def weights_of(name):
  return jax.tree.leaves(reference.load_params(reference.open_model(name)))


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def train_and_resume(name, root, cache_dir):
  """Trains and resumes in a folder of that name; the folder if it is not refused."""
  flags = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
  run = lambda: command(
    train.main,
    f"--config={tiny.ROOT}/configs/llama2_ntk.py:tiny",
    f"--workdir={name}",
    f"--config.data.cache_dir={cache_dir}",
    *flags,
  )
  place = Place(root / "train")
  if not place.check(name, run()):
    return None
  before = weights_of(name)
  shutil.rmtree(place.target(name) / "checkpoints" / "2")
  ended = run()
  assert "continuing after step 1" in ended[1]
  assert place.check(name, ended)
  assert_equal(weights_of(name), before)
  return str(place.target(name))


def convert_both_ways(name, root, source):
  """Exports a model and imports it again, to folders of that name."""
  before, place = weights_of(source), Place(root / "export")
  to = "export", f"--model={source}", f"--out={name}", "--dtype=float32"
  if place.check(name, command(convert.main, *to)):
    assert_equal(weights_of(name), before)
    source = str(place.target(name))
  place = Place(root / "import")
  to = "import", f"--model={source}", f"--out={name}"
  if place.check(name, command(convert.main, *to)):
    assert_equal(weights_of(name), before)


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
  return str(tiny_files.hf_folder(tmp_path_factory.mktemp("hf") / "model"))


@pytest.mark.parametrize(
  "name", ["-e\u0301 {\n}$'\"|%2F#", "gs:[a*]", "a\\b", "hub:a/b", "./hub:a"]
)
def test_convert_takes_a_name_as_it_is(name, tmp_path, hf_folder):
  convert_both_ways(name, tmp_path, hf_folder)


@pytest.mark.slow
def test_all_commands_take_forty_names_as_they_are(tmp_path, cache_dir, hf_folder):
  usable = lambda name: not name.startswith(("/", "~")) and name.strip("./")
  names = list(filter(usable, random_paths.names(240, seed=2)))[::5][:40]
  for number, name in enumerate(names):
    print(ascii(name))
    root = tmp_path / str(number)
    convert_both_ways(name, root, train_and_resume(name, root, cache_dir) or hf_folder)
