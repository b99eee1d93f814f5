"""What starts as several processes, what as one, and what happens if they fail."""

import contextlib
import socket
import subprocess
import sys
import time

import pytest
import tiny

from skipalign_jax.runtime import caches, compile_cache, distributed, errors, launches

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_LOCALID": "0"}
SLURM = STEP | {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}
TPU = {"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_ID": "0"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}


@pytest.mark.parametrize(
  "environ",
  [
    {},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # a batch script, not under srun
    SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},  # a shell in salloc
    STEP | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
    MPI | ORTE | {"OMPI_COMM_WORLD_SIZE": "1"},
    TPU | {"TPU_WORKER_HOSTNAMES": "localhost"},
    TPU | {"TPU_SKIP_MDS_QUERY": "1"},
    TPU | {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},  # names of TPU hosts, but no TPU
  ],
)
def test_a_single_process(environ):
  assert launches.decide("auto", environ) is None
  torchrun = {"RANK": "0", "WORLD_SIZE": "8"}  # set by hand next to a scheduler's
  assert launches.decide("off", environ | torchrun) is None


@pytest.mark.parametrize(
  ("environ", "method"),
  [
    (SLURM, "slurm"),
    (STEP | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "slurm"),
    (MPI | ORTE, "ompi"),
    (SLURM | MPI | ORTE, "ompi"),
    (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
    (TPU | {"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "gketpu"),
    (TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
    (TPU, None),  # a TPU VM, which has a metadata server
    (TPU | {"JAX_PLATFORMS": "tpu,cpu"}, None),
  ],
)
def test_clusters_that_jax_knows(environ, method):
  launch = launches.decide("auto", environ)
  assert launch.arguments.get("cluster_detection_method") == method
  assert launches.decide("off", environ) is None


def test_the_number_of_tasks_is_the_one_of_the_step():
  launch = launches.decide("auto", SLURM | {"SLURM_STEP_NUM_TASKS": "2"})
  assert launch.arguments["num_processes"] == 2


def test_an_explicit_address_needs_no_cluster():
  launch = launches.decide("[::1]:99,4,3", SLURM)
  assert launch.arguments == {
    "coordinator_address": "[::1]:99",
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
  }
  assert launches.decide("host:99,1,0", {}) is None


@pytest.mark.parametrize(
  ("flag", "environ", "message"),
  [
    ("yes", {}, "give auto, off or HOST:PORT,COUNT,INDEX"),
    ("host,2,0", {}, "give auto, off or HOST:PORT,COUNT,INDEX"),
    ("host:99,2", {}, "give auto, off or HOST:PORT,COUNT,INDEX"),
    ("host:99,2,x", {}, "give auto, off or HOST:PORT,COUNT,INDEX"),
    ("host:99,2,2", {}, "INDEX must be from 0 to COUNT - 1"),
    ("host:99,0,0", {}, "INDEX must be from 0 to COUNT - 1"),
    ("host:70000,2,0", {}, "PORT from 1 to 65535"),
    ("auto", MPI, "Open MPI .*give --distributed"),
    (
      "auto",
      {"JAX_COORDINATOR_ADDRESS": "a:1"},
      "processes is unknown; give --distr",
    ),
    (
      "auto",
      {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"},
      "a single process with python -m: it uses all GPUs",
    ),
  ],
)
def test_processes_that_cannot_connect_are_an_error(flag, environ, message):
  with pytest.raises(errors.UserError, match=message):
    launches.decide(flag, environ)


@pytest.mark.multidevice
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_in_vain_gives_up_with_one_message(index):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  code = (
    "from skipalign_jax.runtime import distributed, errors\n"
    f"join = lambda: distributed.initialize('127.0.0.1:{port},2,{index}', 'run', 2)\n"
    "errors.run_command(lambda: distributed.run(join))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=tiny.environment(devices=1),
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2, done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
  assert len(lines) == 1 and f"127.0.0.1:{port}" in lines[0]
  assert f"process {index} still waits" in lines[0]
  assert "Check failure" not in done.stderr


@contextlib.contextmanager
def pair_of(code, *environments):
  """Processes of Python code, with its ADDRESS and INDEX; killed after the block."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{found.getsockname()[1]}"
  pair = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        code.replace("ADDRESS", address).replace("INDEX", str(index)),
      ],
      env=environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, environ in enumerate(environments)
  ]
  try:
    yield pair
  finally:
    for process in pair:
      process.kill()


@pytest.mark.multidevice
@pytest.mark.parametrize("slow", [0, 1])
def test_sigterm_ends_processes_that_wait_for_one_that_works(slow):
  """JAX takes SIGTERM for its preemption service, and a wait is a call into C.

  It aborts a process that is slow to leave after process 0 has ended.
  """
  code = (
    "import time\n"
    "from skipalign_jax.runtime import distributed, errors\n"
    "all_end = distributed._all_end\n"
    "def all_end_slowly(how):\n"
    "  done = all_end(how)\n"
    f"  time.sleep(INDEX == {slow})\n"
    "  return done\n"
    "distributed._all_end = all_end_slowly\n"
    "def work():\n"
    "  distributed.initialize('ADDRESS,2,INDEX', 'run', 60)\n"
    "  print('connected', flush=True)\n"
    "  time.sleep(60 * (1 - INDEX))\n"  # as one that tokenizes
    "  distributed.exchange('')\n"
    "errors.run_command(lambda: distributed.run(work))"
  )
  environ = tiny.environment(devices=1) | {"http_proxy": "http://127.0.0.1:9"}
  with pair_of(code, environ, environ) as pair:
    assert [process.stdout.readline() for process in pair] == 2 * ["connected\n"]
    time.sleep(0.5)
    for process in pair:
      process.terminate()
    printed = [process.communicate(timeout=90)[1] for process in pair]
  assert [process.returncode for process in pair] == [143, 143], printed
  assert all("stopped by SIGTERM" in text for text in printed)


def test_the_address_of_a_slurm_step_is_found_before_jax_connects(monkeypatch):
  for name, value in (SLURM | {"SLURM_STEP_NODELIST": "n[1-2]"}).items():
    monkeypatch.setenv(name, value)
  found = launches.complete(launches.decide("auto", SLURM).arguments, 1)
  assert found["coordinator_address"].startswith("n1:")
  assert (found["num_processes"], found["process_id"]) == (8, 1)
  assert found["local_device_ids"] == [0]


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, None),
    ({"no_proxy": "a"}, None),
    ({"http_proxy": "p:1"}, "n1"),
    ({"https_proxy": "p:1", "no_proxy": "a,b"}, "a,b,n1"),
    ({"grpc_proxy": "p:1", "no_proxy": "a", "no_grpc_proxy": "b"}, "b,n1"),
  ],
)
def test_a_proxy_is_not_asked_for_process_0(environ, expected):
  """Without a proxy nothing is set: JAX warns of every such variable."""
  before = dict(environ)
  distributed._pass_proxies_by("n1:99", environ)
  assert environ == before | ({"no_grpc_proxy": expected} if expected else {})


def test_a_proxy_is_not_asked_for_an_address_in_brackets():
  environ = {"http_proxy": "p:1"}
  distributed._pass_proxies_by("[fe80::1]:99", environ)
  assert environ["no_grpc_proxy"] == "fe80::1"


@pytest.mark.parametrize(
  "environ",
  [
    SLURM | {"JAX_LOCAL_DEVICE_IDS": "3"},
    SLURM | {"SLURM_STEP_NUM_NODES": "8"},  # --ntasks-per-node=1
    SLURM | {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0"},  # --gpus-per-task=1
    SLURM | {"SLURM_GPUS_PER_TASK": "a100:2", "CUDA_VISIBLE_DEVICES": "0,1"},
    MPI | ORTE | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
  ],
)
def test_a_process_takes_all_devices_that_are_its_own(environ, monkeypatch):
  """By their local numbers, seven of eight GPUs of a node would have no process."""
  for name, value in ({"OMPI_COMM_WORLD_LOCAL_RANK": "0"} | environ).items():
    monkeypatch.setenv(name, value)
  found = launches.complete(launches.decide("auto", environ).arguments, 1)
  assert found["local_device_ids"] is None


@pytest.mark.parametrize(
  ("seen", "expected"),
  [("0,1,2,3", [3]), ("0,1,2,3,4,5,6,7", [6, 7]), ("", [3])],
)
def test_processes_of_a_node_share_its_devices(seen, expected, monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  environ = SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "3"}
  for name, value in (environ | {"CUDA_VISIBLE_DEVICES": seen}).items():
    monkeypatch.setenv(name, value)
  found = launches.complete(launches.decide("auto", SLURM).arguments, 1)
  assert found["local_device_ids"] == expected


def test_processes_of_mpirun_are_not_those_of_the_steps_of_slurm(monkeypatch):
  """mpirun starts its helper on each other node as a SLURM step of one node."""
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  environ = MPI | ORTE | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
  environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
  environ["SLURM_STEP_NUM_NODES"] = "1"
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  found = launches.complete(launches.decide("auto", environ).arguments, 1)
  assert found["local_device_ids"] == [2, 3]


def test_devices_that_processes_cannot_share_are_refused(monkeypatch):
  environ = SLURM | {"SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(errors.UserError, match="4 processes cannot share the 6 GPUs"):
    launches.complete(launches.decide("auto", SLURM).arguments, 1)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  found = launches.complete(launches.decide("auto", SLURM).arguments, 1)
  assert found["local_device_ids"] == [0]


@pytest.mark.multidevice
def test_processes_with_different_numbers_of_devices_vote():
  """As those of a row that goes over all devices of two unlike hosts."""
  code = (
    "from skipalign_jax.runtime import distributed\n"
    "distributed.initialize('ADDRESS,2,INDEX', 'run', 60)\n"
    "votes = distributed.Votes()\n"
    "print([votes.cast(status) for status in (0, 143 * INDEX, 0)])"
  )
  with pair_of(code, *(tiny.environment(devices=n) for n in (2, 1))) as pair:
    printed = [process.communicate(timeout=90)[0] for process in pair]
  lines = [text.splitlines()[-1] for text in printed]  # gloo prints others before
  assert lines == 2 * ["[0, 0, 143]"]


def test_a_single_process_does_not_communicate():
  assert distributed.exchange("x") == ["x"]
  assert distributed.Votes().cast(143) == 143
  with pytest.raises(errors.UserError, match="once"), distributed.together():
    raise errors.UserError("once")


@pytest.mark.parametrize("mine", ["", "full"])
def test_what_one_process_has_is_known_to_all(mine, monkeypatch):
  """Whether it is an error of its own or of the other one."""
  theirs = "" if mine else "gone"
  monkeypatch.setattr(distributed, "exchange", lambda text: [text, theirs])
  with pytest.raises(errors.UserError, match=mine or theirs), distributed.together():
    if mine:
      raise errors.UserError(mine)
  with pytest.raises(errors.UserError), distributed.together():
    raise errors.UserError("")  # an error without words is one, too
  monkeypatch.setattr(distributed, "exchange", lambda text: [text, "143"])
  assert [distributed.highest(status) for status in (0, 200)] == [143, 200]


def cached(monkeypatch, folder):
  """The updates of JAX's configuration by `enable`."""
  named = []
  monkeypatch.setattr(caches, "HOME", str(folder))
  monkeypatch.setattr(
    compile_cache.jax.config, "update", lambda *what: named.append(what)
  )
  compile_cache.enable()
  return named


def test_programs_are_kept_unless_the_environment_names_a_folder(monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  folder = tmp_path / "a" / "b"
  named = [("jax_compilation_cache_dir", str(folder / "xla"))]
  assert cached(monkeypatch, folder) == named
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
  assert cached(monkeypatch, folder) == []


def test_cpu_processes_have_no_cache(monkeypatch, tmp_path):
  """A program that XLA loads for CPUs runs its collectives in any order."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
  monkeypatch.setattr(compile_cache.jax, "process_count", lambda: 2)
  assert cached(monkeypatch, tmp_path) == [("jax_enable_compilation_cache", False)]
  monkeypatch.setattr(compile_cache.jax, "default_backend", lambda: "gpu")
  assert cached(monkeypatch, tmp_path) == []


def test_without_a_folder_for_programs_there_is_a_warning(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  (tmp_path / "file").write_text("")
  monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
  assert cached(monkeypatch, tmp_path / "file" / "cache") == []
  assert capsys.readouterr().err.startswith("note: compiled programs are not kept")
