"""The wheel in an empty folder, as after pip install: from chats to an exported model.

Its requirements are those of this environment; the package itself comes from the wheel.
"""

import json
import os
import subprocess
import sys

import pytest
import test_wheel
import tiny
import transformers

pytestmark = pytest.mark.slow
CHATS = [
  {
    "messages": [
      {"role": "user", "content": f"My locker code is {3000 + i}. Keep it in mind."},
      {"role": "assistant", "content": "I will."},
      {"role": "user", "content": "What is my locker code?"},
      {"role": "assistant", "content": f"It is {3000 + i}."},
    ]
  }
  for i in range(30)
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder that the wheel was installed into."""
  folder = tmp_path_factory.mktemp("wheel")
  wheel = test_wheel.build(folder)
  pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
  subprocess.run([*pip, f"--target={folder / 'site'}", wheel], check=True)
  return folder / "site"


@pytest.fixture
def call(site, tmp_path):
  """Runs a command in an empty folder, outside of the repository; what it prints."""

  def run(*command, status=0):
    done = subprocess.run(
      command,
      cwd=tmp_path,
      env=tiny.environment(1)
      | {"PYTHONPATH": str(site), "HOME": str(tmp_path), "PYTHONSAFEPATH": "1"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout

  return run


def test_the_package_and_its_configs_are_those_of_the_wheel(call, site):
  code = (
    "import skipalign_jax; from skipalign_jax.runtime import config_files; "
    "print(skipalign_jax.__file__, config_files.folder())"
  )
  printed = call(sys.executable, "-c", code).split()
  assert printed == [
    str(site / "skipalign_jax/__init__.py"),
    str(site / "skipalign_jax/configs"),
  ]


@pytest.mark.parametrize("words", [["-m", "skipalign_jax"], ["skipalign"]])
def test_commands_are_listed_and_have_help(call, site, words):
  command = [sys.executable, *words] if "-m" in words else [site / "bin/skipalign"]
  assert "usage: skipalign COMMAND" in call(*command)
  assert "llama2_ntk" in call(*command, "train", "--help")
  wrong = call(*command, "train", "--config=nothing", "--workdir=w", status=2)
  assert "llama2_ntk" in wrong


def test_own_chats_are_trained_prompted_exported_and_loaded(call, site, tmp_path):
  lines = "".join(json.dumps(chat) + "\n" for chat in CHATS)
  (tmp_path / "chats.jsonl").write_text(lines)
  skipalign = site / "bin/skipalign"
  source = ("--config=llama2_ntk:tiny", "--config.data.train=chats.jsonl")
  assert "locker" in call(skipalign, "show", *source, "--n=1")
  train = (skipalign, "train", *source, "--workdir=runs/mine", "--config.steps=2")
  assert "30 samples" in call(*train)
  assert "complete, all 2 steps are trained" in call(*train)
  call(
    skipalign, "generate", "--model=runs/mine", "--prompt=Hello", "--max_new_tokens=4"
  )
  call(skipalign, "convert", "export", "--model=runs/mine", "--out=hf")
  config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
  assert config.model_type == "llama"
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  assert tokenizer.apply_chat_template(CHATS[0]["messages"], tokenize=False)
  assert "runs" in os.listdir(tmp_path)
