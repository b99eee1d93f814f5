"""Storage that fills up, forbids writing, or gives back something else."""

import collections
import os
import pathlib
import random
import resource
import shutil
import subprocess

import numpy as np
import pytest
import saved_states
import tiny_runs

from skipalign_jax.hf import native
from skipalign_jax.runtime import errors

pytestmark = pytest.mark.slow
ENDING = "the same command resumes from the latest."


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache_dir):
  folder = tmp_path_factory.mktemp("whole") / "run"
  status, printed = tiny_runs.run(tiny_runs.arguments(folder, cache_dir))
  assert status == 0, printed
  return folder


@pytest.fixture
def small_disk(tmp_path):
  """A tmpfs of 8 MiB, or a skip where mounting is not allowed."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting needs rights that this user does not have")
  yield disk
  subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.parametrize("room", [1_500_000, 600_000, 20_000])
def test_a_full_disk_stops_the_run_and_space_lets_it_resume(
  room, small_disk, whole, cache_dir
):
  """So many bytes are free after the first checkpoints."""
  folder = small_disk / "run"
  shutil.copytree(whole, folder)
  for at in native.steps(folder):
    if at > 12:
      shutil.rmtree(folder / "checkpoints" / str(at))
  left = shutil.disk_usage(small_disk).free - room
  (small_disk / "ballast").write_bytes(bytes(max(left, 0)))
  args = tiny_runs.arguments(folder, cache_dir, **{"checkpoint.every": 1})
  status, printed = tiny_runs.run(args)
  print(f"{room} bytes: status {status}\n{printed[-900:]}")
  assert status in (0, 2), printed  # 0: it was enough
  if status:
    assert "No space left" in printed
    assert ENDING in printed  # next to what Orbax prints about its threads
    assert native.find_step(folder, None) >= 12
  (small_disk / "ballast").unlink()
  assert tiny_runs.run(tiny_runs.arguments(folder, cache_dir))[0] == 0
  tiny_runs.assert_same_run(folder, whole)


def test_a_limit_on_file_sizes_during_a_save(whole, cache_dir, tmp_path):
  """Writes fail inside the asynchronous save, with EFBIG; needs no rights."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / "checkpoints" / "14")
  args = tiny_runs.arguments(folder, cache_dir)
  status, printed = tiny_runs.run(args, preexec_fn=limit)
  print(printed[-900:])
  assert status == 2, printed
  assert ENDING in printed and "File too large" in printed
  assert native.find_step(folder, None) == 12
  assert tiny_runs.run(args)[0] == 0
  tiny_runs.assert_same_run(folder, whole)


def test_a_read_only_workdir_is_an_error(whole, cache_dir, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  bind = ["mount", "--bind", str(folder), str(folder)]
  again = ["mount", "-o", "remount,bind,ro", str(folder)]
  if subprocess.run(bind, capture_output=True).returncode or (
    subprocess.run(again, capture_output=True).returncode
  ):
    pytest.skip("mounting needs rights that this user does not have")
  try:
    status, printed = tiny_runs.run(tiny_runs.arguments(folder, cache_dir))
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)
  assert status == 2 and "cannot be used" in printed, printed
  assert "Traceback" not in printed


def test_every_flip_and_every_cut_in_the_latest_checkpoint_is_noticed(
  whole, cache_dir, tmp_path
):
  """Each file with state, by its checksum; and one run to the end."""
  from skipalign_jax.runtime import checksums

  rng, noticed = random.Random(0), 0
  folder = whole / "checkpoints" / "14"
  files = [p for item in ("params", "opt", "data") for p in (folder / item).rglob("*")]
  for path in (p for p in files if p.is_file()):
    text = path.read_bytes()
    for cut in (False, True):
      damaged = bytearray(text)
      damaged[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
      path.write_bytes(damaged[:-1] if cut else damaged)
      assert checksums.damage(folder), path
      noticed += 1
    path.write_bytes(text)
  assert not checksums.damage(folder) and noticed > 20
  copy = tmp_path / "run"
  shutil.copytree(whole, copy)
  largest = max((copy / "checkpoints" / "14" / "opt").rglob("d/*"), key=os.path.getsize)
  damaged = bytearray(pathlib.Path(largest).read_bytes())
  damaged[len(damaged) // 2] ^= 16
  pathlib.Path(largest).write_bytes(damaged)
  status, printed = tiny_runs.run(tiny_runs.arguments(copy, cache_dir))
  assert status == 0 and "checkpoint 14 is damaged" in printed, printed
  assert "continuing after step 12" in printed
  tiny_runs.assert_same_run(copy, whole)


def test_what_orbax_alone_notices(tmp_path):
  """Why there are checksums: Orbax notices flips in indices, but not in arrays."""
  folder, rng = tmp_path / "run", random.Random(0)
  saved_states.save_all(folder, {7: None}, keep=1, keep_best=False)
  expected = np.asarray(saved_states.state(7.0).params["norm"]["weight"])
  index = folder / "checkpoints" / "7" / "params" / "manifest.ocdbt"
  counts = {}
  for path in (saved_states.arrays(folder, 7), index):
    text = path.read_bytes()
    counts[path] = collections.Counter()
    for _ in range(25):
      damaged = bytearray(text)
      damaged[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
      path.write_bytes(damaged)
      try:
        found, _ = saved_states.restore(folder, 7)
        same = np.array_equal(found.params["norm"]["weight"], expected)
        counts[path]["harmless" if same else "other weights"] += 1
      except errors.UserError:
        counts[path]["noticed"] += 1
    path.write_bytes(text)
    print(path.name, dict(counts[path]))
  silent, noticed = (counts[p] for p in counts)
  assert silent["other weights"] > 15 and noticed["noticed"] == 25


def test_two_runs_on_one_workdir(cache_dir, tmp_path):
  """The second is refused while the first lives, however it dies."""
  args = tiny_runs.arguments(tmp_path / "run", cache_dir, steps=100_000)
  first = tiny_runs.start([*args, "--config.data.workers=2"])
  try:
    path = tmp_path / "run" / "metrics.jsonl"
    while not (path.exists() and '"step": 4,' in path.read_text()):
      assert first.poll() is None, first.stdout.read()
    status, printed = tiny_runs.run(args)
    assert status == 2 and f"being written by process {first.pid} on" in printed
  finally:
    first.kill()
    first.wait()
  second = tiny_runs.start(args)
  try:
    for line in second.stdout:
      if "continuing after step" in line:
        break
    else:
      raise AssertionError("the dead run's lock was not free")
  finally:
    second.kill()
