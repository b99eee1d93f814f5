import pathlib
import subprocess
import sys

import pytest

from skipalign_jax import cli
from skipalign_jax.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def parse(*args):
  return cli.parse(["prog", *args], "usage text", workdir="", n=1)


def test_overrides_variant_and_own_flags():
  config, flags = parse(
    QUICKSTART + ":tiny",
    "--config.optim.learning_rate=2e-5",
    "--config.data.train=a.jsonl*0.5,b.jsonl",
    "--config.data.packing=False",
    "--config.epochs=3",
    "--n=7",
    "--workdir=w",
  )
  assert config.optim.learning_rate == 2e-5
  assert config.data.train == "a.jsonl*0.5,b.jsonl"
  assert config.data.packing is False and config.epochs == 3
  assert config.data.tokenizer == "bytes"  # of the variant
  assert flags == {"workdir": "w", "n": 7}


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ([], "--config=FILE is missing"),
    (["--config=configs/nowhere.py"], "nowhere.py does not exist"),
    ([QUICKSTART + ":huge"], "unknown config variant 'huge'; known: tiny"),
    ([QUICKSTART, "--config.positions.skip_pro=1"], "did you mean positions.skip_prob"),
    ([QUICKSTART, "--config.positons.skip_prob=1"], "did you mean positions.skip_prob"),
    ([QUICKSTART, "--config.batch_size=many"], "batch_size=many"),
    ([QUICKSTART, "--config.data.packing=maybe"], "packing=maybe"),
    ([QUICKSTART, "--wrkdir=x"], "wrkdir"),
    ([QUICKSTART, "stray"], "unexpected argument 'stray'"),
  ],
)
def test_mistakes_are_told(args, message):
  with pytest.raises(errors.UserError) as caught:
    parse(*args)
  assert message in str(caught.value)
  assert "Traceback" not in str(caught.value)


def test_command_prints_one_message_and_exits_with_2():
  command = [sys.executable, "-m", "skipalign_jax.train", QUICKSTART]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --workdir=DIR is missing")
  assert "Traceback" not in done.stderr
