"""Processor time of command lines that end before any work: help, typos, missing flags.

python benchmarks/command_startup.py [--repo=DIR …] [--runs=3] [--only=TEXT]

Prints a table: user plus system time of each process in seconds, the median over its
runs. Several checkouts, each with its own .venv, take turns, so that before and after
come from one run. The exit status is 1 if the last checkout needs more than LIMIT.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 1.2  # seconds
OLD_STUDIES = {"needles": "needle_study", "length": "length_study"}
CONFIG, SWEEP = "--config=configs/quickstart.py", "--config=configs/paper_table1.py"
TASKS = (
  "needle keys facts longbench longbench_v2 ruler babilong mrcr misalignment "
  "perplexity lm_eval suite"
).split()
CASES = [
  *("train --help", "train", "train CONFIG", "train CONFIG --wrkdir=w"),
  "train CONFIG --workdir=w --config.sed=1",
  *("show --help", "show", "show CONFIG --m=1", "show CONFIG --config.sed=1"),
  *("convert --help", "convert", "convert imprt"),
  *("convert import --help", "convert import --model=m"),
  "convert import --model=m --out=o --uot=o",
  *("convert export --help", "convert export --model=m"),
  "convert export --model=m --out=o --dtype=int3",
  *("convert verify --help", "convert verify", "convert verify --model=m --lenght=1"),
  *("generate --help", "generate --model=m"),
  "generate --model=m --prompt=p --promt=p",
  *("evaluate --help", "evaluate", "evaluate neddle --model=m"),
  *(f"evaluate {task} --help" for task in TASKS),
  *(f"evaluate {task}" for task in TASKS),
  *(f"evaluate {task} --model=m --limt=1" for task in TASKS),
  *("evaluate compare --help", "evaluate compare", "evaluate compare a --ot=b"),
  *("check_device --help", "check_device --siez=small"),
  *("plan --help", "plan", "plan CONFIG", "plan CONFIG --topologi=h100:8"),
  "plan CONFIG --topology=h100:8 --config.sed=1",
  *("analyze --help", "analyze", "analyze coverge"),
  *(
    f"analyze {what}{rest}"
    for what in ("distances", "coverage", "diagram", "rope")
    for rest in (" --help", "", " CONFIG --strategy=pose", " CONFIG --config.sed=1")
  ),
  *("analyze training --help", "analyze training", "analyze training w --ot=x"),
  "analyze draw --help",
  *("sweep --help", "sweep", "sweep SWEEP --runn"),
  *("studies.needles --help", "studies.needles", "studies.needles --out=o --mirco"),
  *("studies.smollm2_far --help", "studies.smollm2_far --sttus"),
  *("studies.length --help", "studies.length", "studies.length --out=o --sedes=2"),
]


def command_line(repo: pathlib.Path, case: str) -> list[str]:
  """The module of a case and its arguments; studies were in the package once."""
  name, *words = case.replace("CONFIG", CONFIG).replace("SWEEP", SWEEP).split()
  module = f"skipalign_jax.{name}"
  if name.startswith("studies."):
    study = name.removeprefix("studies.")
    moved = (repo / "studies" / study).is_dir()
    module = name if moved else f"skipalign_jax.{OLD_STUDIES[study]}"
  return [module, *words]


def seconds(repo: pathlib.Path, case: str) -> tuple[float, int]:
  """User plus system time of one command, and its exit status."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(
    [repo / ".venv/bin/python", "-m", *command_line(repo, case)],
    cwd=repo,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
  )
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
  return user + system, done.returncode


def main() -> int:
  """Measures and prints; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repo", action="append", type=pathlib.Path)
  parser.add_argument("--runs", type=int, default=3)
  parser.add_argument("--only", default="", help="cases that begin with this text")
  args = parser.parse_args()
  repos = [repo.resolve() for repo in args.repo or [ROOT]]
  print("| command | " + " | ".join(map(str, repos)) + " | exit status |")
  print("|---|" + "--:|" * (len(repos) + 1))
  slow = []
  for case in CASES:
    if not case.startswith(args.only):
      continue
    rounds = [[seconds(repo, case) for repo in repos] for _ in range(args.runs)]
    medians = [
      statistics.median(results[i][0] for results in rounds) for i in range(len(repos))
    ]
    statuses = {status for results in rounds for _, status in results}
    shown = ", ".join(map(str, sorted(statuses)))
    cells = " | ".join(f"{median:.2f}" for median in medians)
    print(f"| {case} | {cells} | {shown} |", flush=True)
    if medians[-1] > LIMIT:
      slow.append(case)
  if slow:
    print(f"more than {LIMIT} s: {', '.join(slow)}", file=sys.stderr)
  return 1 if slow else 0


if __name__ == "__main__":
  sys.exit(main())
