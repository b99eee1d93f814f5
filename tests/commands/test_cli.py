import pathlib
import subprocess
import sys

import pytest
import tiny

from skipalign_jax import __main__ as command
from skipalign_jax import cli, config, config_keys
from skipalign_jax.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def parse(*args):
  flags = dict(workdir=cli.Flag("", "Folder of a test."), n=cli.Flag(1, "A number."))
  return cli.parse(["prog", *args], "usage text", **flags)


def test_overrides_variant_and_own_flags():
  c, flags = parse(
    QUICKSTART + ":tiny",
    "--config.optim.learning_rate=2e-5",
    "--config.data.train=a.jsonl*0.5,b.jsonl",
    "--config.data.packing=False",
    "--config.epochs=3",
    "--n=7",
    "--workdir=w",
  )
  assert c.optim.learning_rate == 2e-5
  assert c.data.train == "a.jsonl*0.5,b.jsonl"
  assert c.data.packing is False and c.epochs == 3
  assert c.data.tokenizer == "bytes"  # of the variant
  assert flags == {"workdir": "w", "n": 7}


def test_a_config_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.py").write_bytes((ROOT / "configs/llama2_ntk.py").read_bytes())
  assert parse("--config=~/mine.py:tiny")[0].data.tokenizer == "bytes"
  with pytest.raises(errors.UserError, match="home folder ~nobody-here is not known"):
    parse("--config=~nobody-here/mine.py")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ([], "--config=FILE is missing"),
    (["--config=configs/nowhere.py"], "configs/nowhere.py: there is no such file"),
    ([QUICKSTART + ":huge"], "'huge'; known: tiny"),
    ([QUICKSTART, "--config.positions.skip_pro=1"], "did you mean positions.skip_prob"),
    ([QUICKSTART, "--config.positons.skip_prob=1"], "did you mean positions.skip_prob"),
    (
      [QUICKSTART, "--config.batch_size=many"],
      "batch_size='many' is not allowed; set it to a whole number, at least 1 (",
    ),
    ([QUICKSTART, "--config.steps=none"], "2^31 - 1 (default: None, for unset)"),
    ([QUICKSTART, "--config.optim.beta1=1,"], "beta1='1,' is not allowed; set it to a"),
    ([QUICKSTART, "--config.optim.beta1=nan"], "optim.beta1=nan is not allowed"),
    ([QUICKSTART, "--config.checkpoint.keep=0"], "checkpoint.keep=0 is not allowed"),
    ([QUICKSTART, "--config.model.remat=no"], "choose one of none, dots, full"),
    ([QUICKSTART, "--config.data.packing=maybe"], "set it to True or False"),
    ([QUICKSTART, "--wrkdir=x"], "wrkdir"),
    ([QUICKSTART, "--learning_rate=1"], "--config.KEY=VALUE: did you mean optim.learn"),
    ([QUICKSTART, "--data.train=a.jsonl"], "did you mean data.train?"),
    ([QUICKSTART, "--config.optim=adamw_torch"], "did you mean optim.kind?"),
    (
      [QUICKSTART, "--config.lora=True"],
      "lora is a section of the config; give one of",
    ),
    ([QUICKSTART, "stray"], "unexpected argument 'stray'"),
  ],
)
def test_mistakes_are_reported(args, message):
  with pytest.raises(errors.UserError) as caught:
    parse(*args)
  assert message in str(caught.value)
  assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
  ("given", "meant"),
  [
    ("optim.lr", "mean optim.learning_rate?"),
    ("model.name", "mean model.init_from?"),
    ("data.path", "mean data.train?"),
    ("positions.p", "mean positions.skip_prob?"),
    ("per_device_train_batch_size", "mean batch_size?"),
    ("gradient_accumulation_steps", "mean grad_accum?"),
    ("use_lora", "mean lora.rank?"),
    ("output_dir", "the flag --workdir=DIR"),
    ("train_on_inputs", "only replies are learned"),
    ("resume_from_checkpoint", "the same command"),
    ("group_by_length", "mean data.batching?"),
    ("gaps", "mean positions.gaps?"),
    ("alpha", "mean long_short.alpha or lora.alpha?"),
    ("data.seqlen", "mean data.seq_len?"),
    ("optim.learning_rte", "mean optim.learning_rate?"),
  ],
)
def test_names_of_other_trainers_lead_to_ours(given, meant):
  with pytest.raises(errors.UserError) as caught:
    parse(QUICKSTART, f"--config.{given}=1")
  assert meant in str(caught.value)


def test_the_page_for_users_of_other_trainers_has_all_names():
  page = (tiny.ROOT / "docs/from_trl_axolotl.md").read_text(encoding="utf-8")
  others = " ".join(config_keys.OTHER_NAMES.values()).split()
  for name in (*others, *config_keys.NOT_KEYS):
    assert "." in name or f"`{name}`" in page, name


@pytest.mark.parametrize("given", ["max_prompt_length", "rpo_alpha"])
def test_a_name_that_is_like_no_key_leads_nowhere(given):
  assert "did you mean" not in config.unknown(given)


def test_another_name_leads_to_one_key():
  others = [
    name for names in config_keys.OTHER_NAMES.values() for name in names.split()
  ]
  assert len(others) == len({*others}) and not {*others} & set(config.KEYS)
  assert set(config_keys.OTHER_NAMES) <= set(config.KEYS)


@pytest.mark.parametrize(
  "args",
  [
    ["--config=llama2_ntk:tiny"],
    ["--config=configs/llama2_ntk.py:tiny"],
    ["--config", "llama2_ntk:tiny", "--workdir", "w"],
  ],
)
def test_configs_of_the_package_are_found_from_any_folder(args, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  c, _ = parse(*args)
  assert c.data.tokenizer == "bytes" and c.rope.kind == "ntk"


def test_the_value_of_a_key_may_follow_it():
  c, _ = parse(
    "--config=llama2_ntk:tiny", "--config.data.train", "my chats.jsonl",
    "--config.mesh.fsdp", "-1", "--config.data.packing", "--config.steps", "3",
    "--config.data.packing_mask", "False", "--workdir", "w",
  )  # fmt: skip
  assert c.data.train == "my chats.jsonl" and (c.mesh.fsdp, c.steps) == (-1, 3)
  assert c.data.packing is True and c.data.packing_mask is False


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--config.evals.key.short=9"], "set it there"),
    (["--config.evals.key.length=9", "--config.optim.lr=1"], "no key 'optim.lr'"),
  ],
)
def test_options_of_evals_are_changed_where_the_config_sets_them(
  given, message, tmp_path
):
  path = tmp_path / "mine.py"
  path.write_text(
    "from skipalign_jax import config\n\n"
    "def get_config(variant=''):\n"
    "  c = config.default()\n"
    "  c.evals.key = dict(task='perplexity', every=1, length=64)\n"
    "  return c\n"
  )
  c, _ = parse(f"--config={path}", "--config.evals.key.length=32", "--workdir=w")
  assert c.evals.key.length == 32
  with pytest.raises(errors.UserError, match=message):
    parse(f"--config={path}", *given)


def test_none_unsets_a_key_and_the_last_value_counts():
  read = lambda *args: cli.parse(["train", "--config=quickstart:tiny", *args], "")[0]
  c = read("--config.steps=None", "--config.epochs=1")
  assert (c.steps, c.epochs) == (None, 1)
  c = read("--config.epochs=1", "--config.epochs=None")
  assert (c.steps, c.epochs) == (8, None)
  c = read("--config.steps", "None", "--config.steps", "5")
  assert c.steps == 5
  with pytest.raises(errors.UserError, match="seed='None'"):
    read("--config.seed=None")


def test_a_file_of_the_user_comes_before_one_of_the_package(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/llama2_ntk.py").write_text(
    "from skipalign_jax import config\n\n\ndef get_config(variant=''):\n"
    "  c = config.default()\n  c.seed = 77\n"
    "  return config.apply_variant(c, variant)\n"
  )
  assert parse("--config=configs/llama2_ntk.py")[0].seed == 77
  assert parse("--config=llama2_ntk")[0].seed == 0


def test_a_command_by_its_name_and_the_list_of_commands(monkeypatch, capsys):
  for arguments, found in (([], "fine-tune"), (["--help"], "fine-tune")):
    monkeypatch.setattr(sys, "argv", ["skipalign", *arguments])
    assert command.main() == 0 and found in capsys.readouterr().out
  monkeypatch.setattr(sys, "argv", ["skipalign", "train", "--workdir=w"])
  with pytest.raises(errors.UserError, match="--config=FILE is missing"):
    command.main()
  monkeypatch.setattr(sys, "argv", ["skipalign", "tain"])
  with pytest.raises(errors.UserError, match="no command 'tain'"):
    command.main()
  roots = {path.stem for path in (ROOT / "skipalign_jax").glob("*.py")}
  roots -= {"__init__", "__main__", "cli", "config", "config_keys"}
  assert set(command.COMMANDS) == roots | {"sweep"}


@pytest.mark.parametrize(
  "change", ["optim.eps = 0.0", "optim.epsilon = 1e-8", "data.seq_len = 0"]
)
def test_mistakes_in_a_config_file_are_reported(tmp_path, change):
  path = tmp_path / "wrong.py"
  path.write_text(
    "from skipalign_jax import config\n\n\ndef get_config(variant=''):\n"
    f"  c = config.default()\n  c.{change}\n"
    "  return config.apply_variant(c, variant)\n"
  )
  for variant in ("", ":tiny"):
    with pytest.raises(errors.UserError, match=change.split(" = ")[0]) as caught:
      parse(f"--config={path}{variant}")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_all_flags_and_keys(capsys, flag):
  with pytest.raises(SystemExit) as caught:
    parse(flag)
  assert caught.value.code == 0
  printed = capsys.readouterr().out
  assert max(map(len, printed.splitlines())) <= 80
  assert printed.startswith("usage: usage text\n")
  assert "\n  --workdir=''  Folder of a test.\n" in printed
  words = " ".join(printed.split())
  for name, key in config.KEYS.items():
    assert f" {name}=" in words
    assert key.allowed() in words and key.meaning in words
  assert all(part.meaning in words for part in config.SECTIONS)


def test_help_of_commands_needs_no_heavy_library():
  code = (
    "import sys; from skipalign_jax import cli\n"
    "assert 'skipalign_jax.config' in sys.modules\n"
    "print({'jax', 'transformers', 'datasets', 'numpy'} & sys.modules.keys())"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "set()\n", done.stderr


def test_command_prints_one_message_and_exits_with_2():
  command = [sys.executable, "-m", "skipalign_jax.train", QUICKSTART]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --workdir=DIR is missing")
  assert "Traceback" not in done.stderr
