"""The launch files: well formed, commands that exist, flags that XLA takes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib

import pytest
import tiny
import yaml

from skipalign_jax import cli
from skipalign_jax.runtime import launches

FOLDER = tiny.ROOT / "launch"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
YAMLS = sorted(FOLDER.glob("*.yaml"))
FILES = [*SCRIPTS, *YAMLS]
COMMAND = re.compile(r"python -m skipalign_jax\.train((?:\s+(?:\\\n\s*)?--\S+)+)")
name = lambda path: path.name


def commands(text):
  """Arguments of every train command in a file, as lists."""
  return [found.replace("\\\n", " ").split() for found in COMMAND.findall(text)]


def flags(text):
  """--xla… flags outside of comments, with their values."""
  code = re.sub(r"(^|\s)#.*", "", text)
  return [flag.rstrip("'\"") for flag in re.findall(r"--xla_\w+=\S*", code)]


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_are_valid_bash(path):
  subprocess.run(["bash", "-n", path], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", path], check=True)
  assert path.stat().st_mode & 0o100
  assert "set -euo pipefail" in path.read_text()


def test_jobset_starts_as_many_processes_as_it_tells_of():
  job = yaml.safe_load((FOLDER / "kubernetes_jobset.yaml").read_text())
  assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  replicated = job["spec"]["replicatedJobs"][0]
  spec = replicated["template"]["spec"]
  assert spec["completionMode"] == "Indexed"  # gives JOB_COMPLETION_INDEX
  assert job["spec"]["network"]["enableDNSHostnames"]
  container = spec["template"]["spec"]["containers"][0]
  flag = container["args"][0].split("--distributed=")[1]
  launch = launches.decide(flag.replace("$JOB_COMPLETION_INDEX", "1"), {})
  assert launch.arguments["num_processes"] == spec["parallelism"] == spec["completions"]
  pod = f"{job['metadata']['name']}-{replicated['name']}-0-0"
  host = launch.arguments["coordinator_address"].split(":")[0]
  assert host == f"{pod}.{job['metadata']['name']}"


def test_skypilot_has_what_a_managed_job_needs():
  task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
  assert task["num_nodes"] > 1 and task["resources"]["accelerators"]
  mount = next(iter(task["file_mounts"]))
  assert task["file_mounts"][mount]["mode"] == "MOUNT"
  assert f"--workdir={mount}/" in task["run"]
  values = dict(NODE_IPS="10.0.0.1\n10.0.0.2", NUM_NODES="2", NODE_RANK="1")
  ours = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())
  made = re.search(r"uv venv .*--python=(3\.\d+)", task["setup"])[1]
  assert f">={made}" in ours["project"]["requires-python"]  # their images have 3.10
  script = task["run"].replace("exec python", "echo")
  printed = subprocess.run(
    ["bash", "-euc", script],
    env={f"SKYPILOT_{key}": value for key, value in values.items()},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  launch = launches.decide(printed.split("--distributed=")[1].strip(), {})
  assert launch.arguments["coordinator_address"] == "10.0.0.1:9311"


NO_COMMAND = ("local.sh", "slurm_array.sbatch")  # theirs are arguments
FLAGS = {name: cli.Flag("", "Of train.") for name in ("workdir", "distributed")}


@pytest.mark.parametrize(
  "path", [p for p in FILES if p.name not in NO_COMMAND], ids=name
)
def test_commands_are_real(path, monkeypatch):
  monkeypatch.chdir(tiny.ROOT)
  found = commands(path.read_text())
  assert found
  for arguments in found:
    _, own = cli.parse(["train", *arguments], "usage", **FLAGS)
    assert own["workdir"]


def test_the_example_of_local_sh_is_real(monkeypatch):
  monkeypatch.chdir(tiny.ROOT)
  example = re.search(r"launch/local\.sh 2 (.*)", (FOLDER / "local.sh").read_text())
  cli.parse(["train", *example[1].split()], "usage", **FLAGS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_flags_are_explained(path):
  lines = path.read_text().splitlines()
  for i, line in enumerate(lines):
    for flag in flags(line):
      key = flag.split("=")[0]
      above = i > 0 and lines[i - 1].lstrip().startswith("#")
      inside = any(key + ":" in other for other in lines if other.lstrip()[:1] == "#")
      assert above or inside, f"{path.name}: {flag} is not explained"


def test_xla_takes_the_flags():
  found = [
    flag
    for path in FILES
    if path.name != "tpu_vm.sh"
    for flag in flags(path.read_text())
  ]
  found = sorted({flag for flag in found if "$" not in flag})
  assert len(found) > 8
  start = lambda flags: subprocess.run(
    [sys.executable, "-c", "import jax.numpy as jnp; print(jnp.zeros(2).sum())"],
    env=tiny.environment(1) | {"XLA_FLAGS": " ".join(flags)},
    capture_output=True,
    text=True,
  )
  done = start(found)
  assert done.returncode == 0, done.stderr
  assert start([*found, "--xla_gpu_make_it_fast=true"]).returncode != 0


@pytest.mark.parametrize("ended_by", ["the limit of time", "scancel"])
def test_slurm_queues_again_at_the_limit_of_time_only(ended_by, tmp_path):
  """With stand-ins for SLURM's commands; srun leaves with 143 as training does."""
  stubs = {
    "srun": "trap 'exit 143' TERM; echo $SRUN_CPUS_PER_TASK > cpus; echo $$ > step; "
    "while :; do sleep 0.02; done",
    "scancel": 'kill -TERM "$(< step)"',
    "scontrol": 'echo "$@" > queued',
  }
  for stub, text in stubs.items():
    (tmp_path / stub).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / stub).chmod(0o755)
  process = subprocess.Popen(
    ["bash", FOLDER / "slurm.sbatch"],
    cwd=tmp_path,
    env={
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      "SLURM_JOB_ID": "7",
      "SLURM_CPUS_PER_TASK": "8",
    },
  )
  deadline = time.monotonic() + 10
  while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  if ended_by == "scancel":
    subprocess.run([tmp_path / "scancel"], cwd=tmp_path, check=True)
  else:
    process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=10) == 143
  assert (tmp_path / "cpus").read_text() == "8\n"  # srun ignores those of sbatch
  queued = tmp_path / "queued"
  assert queued.exists() == (ended_by != "scancel")
  assert not queued.exists() or queued.read_text() == "requeue 7\n"


# A stand-in waits, but does not outlive a test that failed.
UNTIL_SOON = "for ((i = 0; i < 999; i++)); do"


@pytest.mark.parametrize("asked_by", ["maintenance", "the system"])
def test_a_tpu_host_that_goes_down_asks_training_to_stop(asked_by, tmp_path):
  """With stand-ins for the cloud's commands; the host's shell is the real one."""
  stubs = {
    "gcloud": 'for last; do :; done; exec setsid bash -c "${last#--command=}"',
    "mountpoint": "exit 1",
    "gcsfuse": 'echo "$@" > ~/mounted',
    "sleep": "exec /bin/sleep 0.05",
    "curl": 'echo "$@" >> asked; cat event',  # a kill leaves what it had written
    "python": "trap 'echo TERM >> got' TERM; echo $$ > started; "
    f"{UNTIL_SOON} [[ ! -e got ]] || break; /bin/sleep 0.02; done; "
    "/bin/sleep 0.5; exit 143",
  }
  repository = tmp_path / "skipalign_jax"
  repository.mkdir()
  for stub, text in stubs.items():
    (tmp_path / stub).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / stub).chmod(0o755)
  event = repository / "event"
  event.write_text("NONE")
  names = {"TPU": "t", "ZONE": "z", "BUCKET": "b", "HOME": str(tmp_path)}
  process = subprocess.Popen(
    ["bash", FOLDER / "tpu_vm.sh"],
    env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | names,
  )
  deadline = time.monotonic() + 10
  files = [repository / "started", repository / "asked"]
  while not all(file.exists() and file.read_text() for file in files):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(0.2)
  assert process.poll() is None and not (repository / "got").exists()
  if asked_by == "maintenance":
    event.write_text("TERMINATE_ON_HOST_MAINTENANCE")
  else:
    session = os.getpgid(int((repository / "started").read_text()))
    for number in (signal.SIGTERM, signal.SIGHUP):  # as systemd ends a session
      os.killpg(session, number)
  assert process.wait(timeout=10) == 143
  assert (repository / "got").read_text() == "TERM\n"  # twice would insist
  assert "--rename-dir-limit=" in (tmp_path / "mounted").read_text()
  assert "metadata.google.internal" in (repository / "asked").read_text()


def local(folder, script, **environment):
  """launch/local.sh with two processes that are `script`; INDEX says which one."""
  stub = folder / "python"
  take = 'INDEX="${@: -1}" INDEX="${INDEX##*,}"'
  stub.write_text(f"#!/usr/bin/env bash\n{take}\n{script}\n")
  stub.chmod(0o755)
  return subprocess.Popen(
    [FOLDER / "local.sh", "2"],
    env=os.environ | {"PYTHON": str(stub)} | environment,
    cwd=folder,
    stderr=subprocess.PIPE,
  )


@pytest.mark.parametrize(
  ("first", "status"), [("exit 2", 2), ("kill -KILL $$", 137), ("exit 0", 134)]
)
@pytest.mark.parametrize("which", [0, 1])
def test_local_sh_ends_as_the_process_did_that_failed_first(
  which, first, status, tmp_path
):
  """The other one is aborted, later and with a higher status."""
  script = (
    f"if ((INDEX == {which})); then touch gone; {first}; fi\n"
    f"{UNTIL_SOON} [[ ! -e gone ]] || break; sleep 0.01; done; sleep 0.2; exit 134"
  )
  assert local(tmp_path, script).wait(timeout=20) == status


def test_a_signal_to_local_sh_is_no_status(tmp_path):
  """That of the processes counts, also where they end while it is handled."""
  script = f"trap 'exit 0' TERM; touch $INDEX; {UNTIL_SOON} sleep 0.01; done"
  for i in range(10):
    folder = tmp_path / str(i)
    folder.mkdir()
    process = local(folder, script)
    deadline = time.monotonic() + 10
    while not ((folder / "0").exists() and (folder / "1").exists()):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0


def test_a_port_that_is_taken_is_refused_and_a_free_one_is_chosen(tmp_path):
  script = 'echo "${@: -1}" > $INDEX'
  with socket.socket() as first_run:
    first_run.bind(("127.0.0.1", 0))
    first_run.listen()
    port = str(first_run.getsockname()[1])
    refused = local(tmp_path, script, PORT=port)
    assert refused.wait(timeout=20) == 2
    assert f"PORT={port} is in use" in refused.stderr.read().decode()
    assert not (tmp_path / "0").exists()
    assert local(tmp_path, script).wait(timeout=20) == 0
  chosen = [(tmp_path / name).read_text() for name in "01"]
  assert chosen[0].split(",")[0] == chosen[1].split(",")[0] and port not in chosen[0]


def test_the_readme_lists_every_file():
  text = (FOLDER / "README.md").read_text()
  for path in FOLDER.iterdir():
    assert path.name == "README.md" or f"`{path.name}`" in text
  assert len(text.splitlines()) <= 60
