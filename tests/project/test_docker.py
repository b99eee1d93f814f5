"""The Dockerfiles name what exists: extras, files, Python, the command, users.

They are read here, not built; launch/README.md says what was.
"""

import fnmatch
import re
import shlex
import subprocess

import pytest
import test_lock
from packaging import specifiers

ROOT = test_lock.ROOT
FOLDER = ROOT / "launch" / "docker"
PROJECT = test_lock.PROJECT["project"]
# File → extras of the package in the image.
EXTRAS = {
  "cpu": ["all"],
  "cuda12": ["all", "cuda12"],
  "cuda13": ["all", "cuda13"],
  "tpu": ["all", "tpu"],
}
SECRET = r"TOKEN|PASSWORD|SECRET|API_KEY|index-url|trusted-host|://"


def text_of(name):
  return (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8")


def instructions(text):
  """(keyword, rest) of each instruction, continued lines joined."""
  code = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
  lines = re.sub(r"\\\n\s*", "", code).splitlines()
  return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def stages(text):
  """The instructions of each image that is built, without FROM; and FROM's."""
  found = []
  for keyword, rest in instructions(text):
    if keyword == "FROM":
      found.append((rest, []))
    else:
      found[-1][1].append((keyword, rest))
  return found


def installed(text):
  """The extras that are installed."""
  (names,) = re.findall(r"\"\.\[([\w,]+)\]\"", text)
  return names.split(",")


def sources(text):
  """Files and folders of the repository that are copied."""
  return [
    source
    for keyword, rest in instructions(text)
    if keyword == "COPY" and "--from" not in rest
    for source in rest.split()[:-1]
  ]


def ignored(name):
  """Whether .dockerignore keeps a file out; the last line that matches counts."""
  out = False
  for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
    pattern = line.removeprefix("!")
    if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}/*"):
      out = not line.startswith("!")
  return out


def problems(text):
  """What would not build or not run, as sentences."""
  return [*problems_of_building(text), *problems_of_the_image(text)]


def problems_of_building(text):
  allowed = specifiers.SpecifierSet(PROJECT["requires-python"])
  for base, _ in stages(text):
    python = re.match(r"python:(3\.\d+)-slim-\w+( AS build)?$", base)
    if not python or not allowed.contains(python[1]):
      yield f"no Python of ours in FROM {base}"
  for extra in installed(text):
    if extra not in PROJECT["optional-dependencies"]:
      yield f"no extra {extra}"
  copied = sources(text)
  for source in copied:
    if not (ROOT / source).exists():
      yield f"no file {source}"
  needed = [PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"]
  needed += ["requirements.txt", "requirements.lock", "skipalign_jax", "configs"]
  yield from (f"{name} is not copied" for name in needed if name not in copied)
  for option in ("--constraints", "--build-constraints"):
    if f"{option} requirements.lock" not in text:
      yield f"without {option}"
  if re.search(SECRET, "\n".join(rest for _, rest in instructions(text))):
    yield "a secret or a host"


def problems_of_the_image(text):
  _, last = stages(text)[-1]
  rest = dict(last)
  environment = dict(word.split("=", 1) for word in rest.get("ENV", "").split())
  home = environment.get("HOME", "")
  user = rest.get("USER", "root")
  if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user):
    yield f"runs as {user}; a number other than 0 is needed"
  if rest.get("VOLUME") != f"{home}/.cache":
    yield "the caches are in no volume"
  for folder in (home, rest.get("VOLUME"), rest.get("WORKDIR")):
    made = [one for one in shlex.split(rest.get("RUN", "")) if one == folder]
    if not made or "-m 1777" not in rest["RUN"]:
      yield f"not every user may write {folder}"
  if rest.get("ENTRYPOINT") not in (f'["{name}"]' for name in PROJECT["scripts"]):
    yield f"no command {rest.get('ENTRYPOINT')}"
  place = environment.get("PATH", "").split("/bin:")[0]
  if f"COPY --from=build {place} {place}\n" not in text or f"venv {place} " not in text:
    yield "the environment is not the one that was installed"


@pytest.mark.parametrize("name", EXTRAS)
def test_everything_that_a_dockerfile_names_exists(name):
  assert not problems(text_of(name))
  assert installed(text_of(name)) == EXTRAS[name]


@pytest.mark.parametrize(
  ("old", "new", "problem"),
  [
    ("python:3.11", "python:3.9", "no Python"),
    ("[all", "[everything", "no extra everything"),
    ("COPY configs configs", "COPY config configs", "no file config"),
    ("README.md LICENSE", "README.md", "LICENSE is not copied"),
    ("--constraints requirements.lock", "", "without --constraints"),
    ("USER 1000:1000", "USER root", "runs as root"),
    ("USER 1000:1000\n", "", "runs as root"),
    ("HOME=/home/skipalign ", "HOME=/root ", "no volume"),
    ("-m 1777", "-m 0755", "not every user may write"),
    ('ENTRYPOINT ["skipalign"]', 'ENTRYPOINT ["skipaling"]', "no command"),
    ("PATH=/opt/skipalign", "PATH=/opt/other", "not the one"),
    ("ENV HOME", "ENV HF_TOKEN=abc HOME", "a secret"),
  ],
)
def test_mistakes_are_noticed(old, new, problem):
  text = text_of("cpu")
  assert old in text
  assert any(problem in one for one in problems(text.replace(old, new)))


def test_dockerfiles_differ_only_in_extras_and_comments():
  plain = {
    re.sub(r"\"\.\[[\w,]+\]\"", "", str(instructions(text_of(name)))) for name in EXTRAS
  }
  assert len(plain) == 1
  assert {path.name for path in FOLDER.iterdir()} == {
    f"{name}.Dockerfile" for name in EXTRAS
  }


@pytest.mark.parametrize("name", EXTRAS)
def test_the_comment_has_the_commands(name):
  comment = text_of(name).partition("\nFROM")[0]
  assert f"docker build -f launch/docker/{name}.Dockerfile -t skipalign:{name} ." in (
    comment
  )
  assert f"skipalign:{name} \\\n" in comment
  assert ("--gpus=all" in comment) == name.startswith("cuda")


def test_the_build_gets_what_it_copies_and_little_else():
  tracked = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.split()
  copied = sources(text_of("cpu"))
  for name in tracked:
    is_copied = any(name == one or name.startswith(f"{one}/") for one in copied)
    assert ignored(name) != is_copied, name
  for name in (".git/config", ".venv/bin/python", "runs/a/config.json", ".env"):
    assert ignored(name)
