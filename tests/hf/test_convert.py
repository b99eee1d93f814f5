"""import, export, verify: what goes in comes out, and mistakes write nothing."""

import dataclasses
import json
import types

import gguf
import huggingface_hub
import jax.numpy as jnp
import make_goldens
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny_files as tiny
import tokenizers
import transformers
import yaml
from tokenizers import models, normalizers, pre_tokenizers

from skipalign_jax import convert
from skipalign_jax.hf import card, export, gguf_tokenizer, hub, native, reference
from skipalign_jax.model import hf_rope, model_config, rope
from skipalign_jax.runtime import errors, files


def run(command, ref, out=None, *more):
  arguments = [command, f"--model={ref}", *more]
  return convert.main(arguments if out is None else [*arguments, f"--out={out}"])


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("llama2_gqa", ml_dtypes.bfloat16),
    ("smollm2_tied", np.float16),
    ("biases", np.float32),
    ("mistral", ml_dtypes.bfloat16),
    ("qwen2", np.float16),
    ("qwen3", np.float32),
    ("smollm3", ml_dtypes.bfloat16),
  ],
)
def test_export_of_import_is_the_same_bits(tmp_path, name, dtype, capsys):
  source = tiny.hf_folder(tmp_path / "hf", name, dtype, shards=2)
  assert run("import", source, tmp_path / "native") == 0
  assert run("export", tmp_path / "native", tmp_path / "out", "--dtype=keep") == 0
  ours = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
  expected = tiny.tensors(name, dtype)
  assert set(ours) == set(expected)
  for key, tensor in expected.items():
    assert ours[key].dtype == dtype
    assert ours[key].tobytes() == tensor.tobytes(), key
  again = reference.open_model(str(tmp_path / "out"))
  assert again.config == tiny.config(name)
  assert again.hf_config["model_type"] == make_goldens.MODELS[name]["model_type"]
  assert again.generation_config["temperature"] == 0.5
  printed = capsys.readouterr().out
  assert f"--config.model.init_from={tmp_path / 'native'}" in printed
  assert "from_pretrained" in printed and "\x1b" not in printed


def test_printed_flags_with_spaces_can_be_copied(tmp_path, monkeypatch, capsys):
  tiny.hf_folder(tmp_path / "hf", "qwen2", np.float32)
  monkeypatch.chdir(tmp_path)
  run("import", "hf", "my run")
  run("export", "my run", "it's out")
  printed = capsys.readouterr().out
  assert "--config.model.init_from='my run'\n" in printed
  assert """--model='it'"'"'s out'\n""" in printed


def test_import_is_a_checkpoint_that_orbax_reads(tmp_path):
  source = tiny.hf_folder(tmp_path / "hf")
  run("import", source, tmp_path / "native")
  manager = ocp.CheckpointManager((tmp_path / "native/checkpoints").absolute())
  assert manager.latest_step() == 0
  items = ocp.args.Composite(params=ocp.args.PyTreeRestore())
  restored = manager.restore(0, args=items)["params"]
  manager.close()
  expected = reference.load_params(reference.open_model(str(source)), "bfloat16")
  assert restored["embed"]["weight"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(
    restored["layers"]["mlp"]["up"]["weight"], expected["layers"]["mlp"]["up"]["weight"]
  )
  opened = reference.open_model(str(tmp_path / "native"))
  assert opened.weights["layers/mlp/up/weight"].chunk_layers == 1
  embed = opened.weights["embed/weight"]
  assert embed.chunk_layers == embed.shape[0]  # a chunk is no larger than its array
  described = native.read_config(tmp_path / "native")
  assert described.base == str(source)
  assert described.versions["jax"]


def test_a_damaged_import_is_not_exported(tmp_path):
  run("import", tiny.hf_folder(tmp_path / "hf"), tmp_path / "native")
  stored = (tmp_path / "native/checkpoints/0/params").rglob("d/*")
  path = max(stored, key=lambda path: path.stat().st_size)
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  path.write_bytes(damaged)
  with pytest.raises(errors.UserError, match=r"0 is damaged.* the only checkpoint"):
    run("export", tmp_path / "native", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_import_of_gguf(tmp_path):
  path = tiny.gguf_file(tmp_path / "m.gguf")
  run("import", path, tmp_path / "native")
  ours = reference.load_params(reference.open_model(str(tmp_path / "native")))
  theirs = reference.load_params(reference.open_model(str(path)))
  np.testing.assert_array_equal(
    ours["layers"]["attn"]["q"]["weight"], theirs["layers"]["attn"]["q"]["weight"]
  )
  tok = reference.load_tokenizer(str(tmp_path / "native"))
  assert tok.chat_template == tiny.TEMPLATE


def trained(folder, kind="ntk", base="hub:org/base-model@main"):
  """A workdir as training leaves it, of a model whose rope was scaled."""
  config = tiny.config()
  scaled = rope.RopeConfig(kind, config.rope.theta, 4.0, original_window=config.window)
  config = dataclasses.replace(config, rope=scaled, window=4 * config.window)
  folder.mkdir()
  experiment = {
    "seed": 7,
    "batch_size": 128,
    "data": {"train": "someone/private/chats.jsonl, hub:org/set:train"},
    "optim": {"learning_rate": 1e-5},
    "positions": {"strategy": "skip_outer", "max_position": 100_000, "skip_prob": 0.5},
    "secret": "hf_abcdef",
  }
  description = native.Description(config, base=base, config=experiment)
  native.write_config(folder, description)
  tok = tiny.tokenizer()
  tok.save_pretrained(folder / "tokenizer")
  source = tiny.hf_folder(folder.parent / "start")
  weights = reference.open_model(str(source)).weights
  masters = (
    dataclasses.replace(weight, dtype=np.dtype(np.float32))
    for weight in weights.values()
  )
  native.write_params(folder, 30, masters)
  return config


def test_export_of_training_writes_both_rope_spellings_and_stops(tmp_path):
  config = trained(tmp_path / "run")
  run("export", tmp_path / "run", tmp_path / "out", "--max_shard_gb=0.00001")
  out = tmp_path / "out"
  assert len(list(out.glob("model-*.safetensors"))) > 2
  written = files.read_json(out / "config.json")
  theta = rope.ntk_theta(config.rope.theta, 4.0, config.head_dim)
  assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == theta
  assert written["max_position_embeddings"] == config.window
  assert written["torch_dtype"] == written["dtype"] == "bfloat16"
  tok = tiny.tokenizer()
  stops = [tok.eos_token_id, tok.convert_tokens_to_ids("<|im_end|>")]
  generation = files.read_json(out / "generation_config.json")
  assert generation["eos_token_id"] == written["eos_token_id"] == stops
  ours = reference.open_model(str(out))
  norm = ours.weights["norm/weight"]
  assert norm.dtype == ml_dtypes.bfloat16
  mode = {path.stat().st_mode & 0o777 for path in out.iterdir()}
  assert len(mode) == 1, "some files are private"


@pytest.mark.parametrize("are_window", [True, False])
def test_a_longer_window_is_named_everywhere(tmp_path, are_window):
  """Readers take the smallest, or the first, of the names that a window has.

  Limits that are not the window stay: of the length of replies, of a tokenizer that
  takes longer texts.
  """
  source = tiny.hf_folder(tmp_path / "hf")
  before = tiny.config().window
  reply, texts = (before, before) if are_window else (20, 16 * before)
  for name, keys, length in (
    ("config.json", ("max_length", "max_sequence_length", "model_max_length"), before),
    ("generation_config.json", ("max_length",), reply),
    ("tokenizer_config.json", ("model_max_length",), texts),
  ):
    found = files.read_json(source / name)
    files.write_json(source / name, found | dict.fromkeys(keys, length))
  run("import", source, tmp_path / "run")
  run("export", tmp_path / "run", tmp_path / "same")
  described = native.read_config(tmp_path / "run")
  longer = dataclasses.replace(described.model_config, window=4 * before)
  described = dataclasses.replace(described, model_config=longer)
  native.write_config(tmp_path / "run", described)
  run("export", tmp_path / "run", tmp_path / "longer")
  for folder, window in (("same", before), ("longer", 4 * before)):
    written = files.read_json(tmp_path / folder / "config.json")
    assert written["max_position_embeddings"] == window
    assert not {"max_length", "max_sequence_length", "model_max_length"} & set(written)
    generation = files.read_json(tmp_path / folder / "generation_config.json")
    assert generation["max_length"] == (window if are_window else reply)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
    assert theirs.model_max_length == (window if are_window else texts)


def test_ids_of_the_base_stay_where_the_tokenizer_has_none():
  tokenizer = types.SimpleNamespace(bos_token_id=None, pad_token_id=7)
  base = {"bos_token_id": 5, "pad_token_id": 6}
  written = export.hf_config(tiny.config(), base, tokenizer, [], "float32")
  names = ("bos_token_id", "pad_token_id", "eos_token_id")
  assert [written[name] for name in names] == [5, 7, None]


def test_the_model_card_has_the_recipe_and_nothing_else(tmp_path):
  trained(tmp_path / "run")
  run("export", tmp_path / "run", tmp_path / "out")
  text = (tmp_path / "out/README.md").read_text()
  for part in (
    'base_model: "org/base-model"\n', "| org/base-model@main |",
    "skip_outer", "100000", "| skip probability p | 0.5",
    "| optimizer steps | 30 |", "chats.jsonl, hub:org/set:train", "1e-05",
    "ntk × 4 of base 10000", "attention_mask",
  ):  # fmt: skip
    assert part in text, part
  for part in ("someone", "private", "hf_abcdef", str(tmp_path)):
    assert part not in text


@pytest.mark.parametrize(
  ("base", "row", "cached", "named"),
  [
    ("runs/mine", "local folder mine", False, False),
    ("runs/mine", "runs/mine", True, True),  # of a run that did not note `hub:`
    ("here/mine", "local folder mine", True, False),
    ("secret/runs/mine@30", "local folder mine@30", True, False),
    ("/secret/a|b<i>\nc: d", "local folder a\\|b\\<i>\\\\nc: d", True, False),
    ("org/m\nlicense: mit", "local folder m\\\\nlicense: mit", True, False),
    ("secret/m.gguf", "local file m.gguf", True, False),
    ("hub:null", "null", False, True),
  ],
)  # fmt: skip
def test_the_card_names_a_base_that_others_can_find(
  tmp_path, monkeypatch, base, row, cached, named
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "here").mkdir()
  monkeypatch.setattr(hub, "is_cached", lambda name: cached)
  described = native.Description(tiny.config(), base=base, config={"data": {}})
  text = card.write(tiny.config(), described, 1, "float32")
  assert f"| base model | {row} |\n" in text and "secret" not in text
  front = yaml.safe_load(text.split("---\n")[1])
  keys = {"library_name", "pipeline_tag", "tags"}
  assert front.keys() == keys | ({"base_model"} if named else set())
  assert front.get("base_model") == (row if named else None)


def test_names_of_a_config_cannot_write_into_the_card():
  evil = {"data": {"train": "a\n---\n# evil | <script>\x1b[1m"}, "seed": "[a](b)"}
  versions = {"jax\n---\nevil": "<b>1</b>"}
  described = native.Description(tiny.config(), config=evil, versions=versions)
  text = card.write(tiny.config(), described, 1, "float32")
  assert text.count("---\n") == 2 and "\nevil" not in text and "\x1b" not in text
  assert "[a]" not in text.replace("\\[", "") and "<" not in text.replace("\\<", "")


def test_records_name_models_of_the_hub_with_their_prefix(tmp_path, monkeypatch):
  source = tiny.hf_folder(tmp_path / "snapshot")
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(source))
  run("import", "org/model@abc", tmp_path / "native")
  assert native.read_config(tmp_path / "native").base == "hub:org/model@abc"


def test_exported_tokenizer_is_the_same_for_anyone(tmp_path):
  source = tiny.hf_folder(tmp_path / "hf")
  run("export", source, tmp_path / "out")
  config = files.read_json(tmp_path / "out/tokenizer_config.json")
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # v4 knows it
  assert config["chat_template"] == tiny.TEMPLATE
  assert "local_files_only" not in config
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert theirs(tiny.TEXT)["input_ids"] == tiny.tokenizer()(tiny.TEXT)["input_ids"]
  assert theirs.chat_template == tiny.TEMPLATE


def test_exported_special_tokens_are_spelled_as_version_4_does(tmp_path):
  """It fails where extra_special_tokens is a list, as version 5 writes it."""
  source = tiny.hf_folder(tmp_path / "hf")
  tokenizer = tiny.tokenizer()
  more = ["<|im_end|>", "<tool>"]
  tokenizer.add_special_tokens({"additional_special_tokens": more})
  tokenizer.save_pretrained(source)
  run("export", source, tmp_path / "out")
  config = files.read_json(tmp_path / "out/tokenizer_config.json")
  assert config["additional_special_tokens"] == more
  assert "extra_special_tokens" not in config
  run("export", tmp_path / "out", tmp_path / "again")
  for theirs in (
    transformers.AutoTokenizer.from_pretrained(tmp_path / "again"),
    reference.load_tokenizer(str(tmp_path / "again")),
  ):
    assert theirs.extra_special_tokens == more
    assert theirs.all_special_ids == tokenizer.all_special_ids


def test_a_sentencepiece_tokenizer_has_what_llama_cpp_needs(tmp_path, capsys):
  """tokenizer.model, the tokens that it lacks, and whether texts begin with bos."""
  source = tiny.hf_folder(tmp_path / "hf")
  core = tokenizers.Tokenizer(
    models.BPE({"<s>": 0, "▁": 1, "a": 2}, [], unk_token="<s>", byte_fallback=True)
  )
  core.normalizer = normalizers.Prepend("▁")
  core.add_special_tokens(["<|im_end|>"])
  core.save(str(source / "tokenizer.json"))
  named = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
  files.write_json(source / "tokenizer_config.json", named)
  run("export", source, tmp_path / "without")
  assert "needs the tokenizer.model of the base" in capsys.readouterr().out
  (source / "tokenizer.model").write_bytes(b"pieces")
  run("import", source, tmp_path / "run")
  run("export", tmp_path / "run", tmp_path / "out")
  assert "needs the tokenizer.model" not in capsys.readouterr().out
  assert (tmp_path / "out/tokenizer.model").read_bytes() == b"pieces"
  config = files.read_json(tmp_path / "out/tokenizer_config.json")
  assert config["added_tokens_decoder"]["3"]["content"] == "<|im_end|>"
  found = gguf.SpecialVocab(tmp_path / "out")
  assert found.add_special_token == {"bos": False, "eos": False}
  assert not (tmp_path / "out/added_tokens.json").exists()
  ids = [reference.load_tokenizer(str(at))("a<|im_end|>")["input_ids"]
         for at in (source, tmp_path / "out")]  # fmt: skip
  assert ids == [[1, 2, 3]] * 2


def test_scaling_that_llama_cpp_leaves_out_is_noted(tmp_path, capsys):
  for name, noted in (("llama3", False), ("qwen3", True)):
    source = tiny.hf_folder(tmp_path / name, name)
    config = files.read_json(source / "config.json")
    llama3 = model_config.to_hf(tiny.config("llama3"))
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
      config[key] = llama3[key]
    files.write_json(source / "config.json", config)
    run("export", source, tmp_path / f"{name}_out")
    assert ("leaves the llama3 scaling" in capsys.readouterr().out) == noted


def test_a_tokenizer_that_transformers_does_not_read_as_it_is(tmp_path, capsys):
  """Version 5 gives qwen2 a tokenizer with Qwen's rules, whatever the files say."""
  for name, alike in (("llama2_gqa", True), ("qwen2", False)):
    source = tiny.hf_folder(tmp_path / name, name)
    run("export", source, tmp_path / f"{name}_out")
    assert ("note: AutoTokenizer" in capsys.readouterr().out) != alike
  tokenizer = tiny.tokenizer()
  core, byte_level = tokenizer.backend_tokenizer, pre_tokenizers.ByteLevel
  core.normalizer = normalizers.NFC()
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(gguf_tokenizer._QWEN2_SPLIT), "isolated"),
      byte_level(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.save_pretrained(source)
  run("export", source, tmp_path / "with_its_rules")
  assert "note: AutoTokenizer" not in capsys.readouterr().out


def test_dtypes(tmp_path):
  source = tiny.hf_folder(tmp_path / "hf", dtype=np.float32)
  run("export", source, tmp_path / "bf16")
  ours = safetensors.numpy.load_file(tmp_path / "bf16/model.safetensors")
  for key, tensor in tiny.tensors(dtype=ml_dtypes.bfloat16).items():
    np.testing.assert_array_equal(ours[key], tensor)
  big = tiny.tensors(dtype=np.float32)
  big["model.norm.weight"] = big["model.norm.weight"] * 1e6
  safetensors.numpy.save_file(big, source / "model.safetensors")
  with pytest.raises(errors.UserError, match="65504"):
    run("export", source, tmp_path / "f16", "--dtype=float16")
  assert not (tmp_path / "f16").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
  "name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, value):
  source = tiny.hf_folder(tmp_path / "hf", dtype=np.float32)
  damaged = tiny.tensors(dtype=np.float32)
  damaged[name] = damaged[name].copy()
  damaged[name][1, 2] = value
  safetensors.numpy.save_file(damaged, source / "model.safetensors")
  for command in ("import", "export"):
    with pytest.raises(errors.UserError, match=rf"{name} .*another checkpoint"):
      run(command, source, tmp_path / command)
    assert not (tmp_path / command).exists()


def test_nothing_is_overwritten_and_failures_leave_nothing(tmp_path, monkeypatch):
  source = tiny.hf_folder(tmp_path / "hf")
  taken = tmp_path / "taken"
  taken.mkdir()
  (taken / "mine.txt").write_text("keep")
  for command in ("import", "export"):
    with pytest.raises(errors.UserError, match="not an empty folder"):
      run(command, source, taken)
  assert [path.name for path in taken.iterdir()] == ["mine.txt"]

  before = set(tmp_path.iterdir())
  (source / "model.safetensors").rename(tmp_path / "away")
  for command in ("import", "export"):
    with pytest.raises(errors.UserError, match=r"no model\.safetensors"):
      run(command, source, tmp_path / "out")
  (tmp_path / "away").rename(source / "model.safetensors")

  def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(safetensors.numpy, "save_file", no_space)
  monkeypatch.setattr(native, "_write", no_space)
  for command in ("import", "export"):
    with pytest.raises(errors.UserError, match=r"not written .*No space"):
      run(command, source, tmp_path / "out")
  assert set(tmp_path.iterdir()) == before


def test_vocabulary_must_fit(tmp_path):
  source = tiny.hf_folder(tmp_path / "hf")
  tok = tiny.tokenizer()
  tok.add_tokens([f"<extra_{i}>" for i in range(100)])
  tok.save_pretrained(tmp_path / "other")
  (tmp_path / "other/config.json").write_text(json.dumps({}))
  with pytest.raises(errors.UserError, match="embedding rows"):
    run("import", source, tmp_path / "out", f"--tokenizer={tmp_path / 'other'}")
  with pytest.raises(errors.UserError, match="embedding rows"):
    run("export", source, tmp_path / "out", f"--tokenizer={tmp_path / 'other'}")


def test_bad_flags(tmp_path, capsys):
  source = tiny.hf_folder(tmp_path / "hf")
  with pytest.raises(errors.UserError, match="shard size"):
    run("export", source, tmp_path / "out", "--max_shard_gb=0")
  out = f"--out={tmp_path / 'out'}"
  for flag in ("--max_shard_gb=nan", "--max_shard_gb=inf"):
    with pytest.raises(SystemExit):
      convert.main(["export", "--model=x", out, flag])
    assert f"'{flag[-3:]}' is not a finite number" in capsys.readouterr().err
  for value in ("nan", "inf", "much"):
    with pytest.raises(SystemExit):
      convert.main(["verify", "--model=x", f"--tolerance={value}"])
    assert f"'{value}' is not a finite number" in capsys.readouterr().err
  assert run("export", source, tmp_path / "whole", "--max_shard_gb=1e305") == 0
  with pytest.raises(errors.UserError, match="adapters are one file"):
    run("export", source, tmp_path / "out", "--format=peft", "--max_shard_gb=1")
  with pytest.raises(SystemExit):
    convert.main(["verify", f"--model={source}", f"--tokenizer={source}"])
  assert "--tokenizer" in capsys.readouterr().err
  for arguments in (["export", "--model=x"], ["import", "--dtype=bfloat16"], []):
    with pytest.raises(SystemExit) as caught:
      convert.main(arguments)
    assert caught.value.code == 2
  capsys.readouterr()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["ntk", "linear", "yarn"])
def test_verify_and_transformers_load_the_export(tmp_path, kind, capsys):
  torch = pytest.importorskip("torch")
  trained(tmp_path / "run", kind)
  assert run("verify", tmp_path / "run", None, "--tolerance=1e-4") == 0
  assert "skipped positions 0..16383" in capsys.readouterr().out
  run("export", tmp_path / "run", tmp_path / "out", "--dtype=float32")
  assert run("verify", tmp_path / "out", None, "--tolerance=1e-4") == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  ours = reference.load_params(reference.open_model(str(tmp_path / "run")))
  np.testing.assert_array_equal(
    theirs.state_dict()["model.norm.weight"].float().numpy(),
    np.asarray(ours["norm"]["weight"], np.float32),
  )
  assert theirs.generation_config.eos_token_id == [0, 2]
  assert theirs.dtype == torch.float32


@pytest.mark.torch
def test_verify_compares_the_reading_of_a_folder(tmp_path, monkeypatch, capsys):
  """A key that is read in another way than by transformers shows in the logits."""
  pytest.importorskip("torch")
  source = tiny.hf_folder(tmp_path / "hf")
  config = files.read_json(source / "config.json")
  config = {k: v for k, v in config.items() if k != "rope_parameters"}
  window = config["max_position_embeddings"]
  config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
  config["original_max_position_embeddings"] = window // 4
  files.write_json(source / "config.json", config)
  assert run("verify", source) == 0
  wrong = lambda hf, given, where: window
  monkeypatch.setattr(hf_rope, "_original_window", wrong)
  assert run("verify", source) == 1
  assert "FAILED" in capsys.readouterr().out


def test_library_versions_are_the_installed_ones():
  assert card.library_versions()["jax"] == __import__("jax").__version__
  assert export.DTYPES[0] == "bfloat16"
  assert jnp.dtype("bfloat16") == ml_dtypes.bfloat16
