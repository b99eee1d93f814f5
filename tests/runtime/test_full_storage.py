"""Files that may not grow: nothing is half-written, and it is one message."""

import sys
import time

import pytest
import saved_states
from file_limits import files_of
from matplotlib import figure as figure_lib

from skipalign_jax.runtime import compile_cache, errors, files, plotting, terminal


def picture(path):
  plotting.save(figure_lib.Figure(), path, dpi=20)


WRITERS = {
  "JSON": lambda path: files.write_json(path, {"a": "b" * 5000}),
  "text": lambda path: files.write_text(path, "b" * 5000),
  "picture": picture,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_written_whole_or_not_at_all(name, old, tmp_path):
  path = tmp_path / "a"
  if old:
    path.write_text(old)
  with (
    files_of(30),
    pytest.raises(errors.UserError, match=r"/a: File too large; .*ulimit -f"),
    errors.of_storage(),
  ):
    WRITERS[name](path)
  assert [one.read_text() for one in tmp_path.iterdir()] == ([old] if old else [])
  WRITERS[name](path)
  assert path.stat().st_size > 30 and list(tmp_path.iterdir()) == [path]


# Bytes that a file may have: at 4000 only the largest array does not fit.
@pytest.mark.parametrize("size", [0, 100, 4000])
def test_a_checkpoint_is_saved_or_reported(size, tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(sys, "unraisablehook", terminal.print_unraisable)
  save = lambda at: saved_states.save_all(tmp_path, {at: None}, 1, False)
  save(1)
  with (
    files_of(size),
    pytest.raises(errors.UserError, match=r"step 2.*File too large") as one,
  ):
    save(2)
  assert str(one.value).count("File too large") == 1
  assert capfd.readouterr() == ("", "")  # no traceback of a thread
  found, iterator = saved_states.restore(tmp_path, 1)
  assert iterator == {"next": 1} and found.params["norm"]["weight"][1] == 1
  # What `restore` has opened removes the rest of the save in the background.
  while list((tmp_path / "checkpoints").glob("*-tmp")):
    time.sleep(0.01)
  assert save(2) == [2]


def test_programs_that_cannot_be_kept_are_one_note(tmp_path, capsys, monkeypatch):
  class Cache:
    path = tmp_path

  def put(cache, key, value):
    (cache.path / f"{key}-cache").write_bytes(value)

  monkeypatch.setattr(compile_cache, "_put", put)
  monkeypatch.setattr(compile_cache, "_noted", [])
  with files_of(10):
    compile_cache._replacing_put(Cache, "a", bytes(100))
    compile_cache._replacing_put(Cache, "b", bytes(100))
  printed = capsys.readouterr().err
  assert printed.count("note: ") == 1 and "JAX_COMPILATION_CACHE_DIR" in printed
  assert not list(tmp_path.iterdir())
  compile_cache._replacing_put(Cache, "a", bytes(100))
  assert (tmp_path / "a-cache").stat().st_size == 100
