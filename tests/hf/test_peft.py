"""Adapters in PEFT's format: names, values, a run that starts from one, refusals."""

import dataclasses
import io
import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny
import tiny_files
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax import convert
from skipalign_jax.hf import adapters, locations, names, native, reference
from skipalign_jax.model import lora, model_config, rope
from skipalign_jax.runtime import errors, files
from skipalign_jax.training import checkpoint, reference_log_probs, run
from skipalign_jax.training import setup as setup_lib
from skipalign_jax.training import state as state_lib

SHAPE = tiny_files.config()
TARGETS = {"q": "self_attn.q_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
OFF = {
  key: config_lib.KEYS[f"lora.{key}"].default for key in ("rank", "alpha", "targets")
}
SETTINGS = {
  "peft_type": "LORA",
  "task_type": "CAUSAL_LM",
  "r": 3,
  "lora_alpha": 6,
  "bias": "none",
  "lora_dropout": 0.1,
  "target_modules": ["q_proj", "up_proj", "down_proj"],
  "megatron_core": "megatron.core",
  "inference_mode": True,
}


def drawn(ranks=lambda layer: 3, layers=None):
  """Tensors of an adapter on the tiny model, without the code under test."""
  rng = np.random.default_rng(0)
  found = {}
  for layer in range(SHAPE.num_layers) if layers is None else layers:
    for name, module in TARGETS.items():
      _, out, into = names.expected_shapes(SHAPE)[lora.MATRICES[name]]
      start = f"base_model.model.model.layers.{layer}.{module}"
      size = {"A": (ranks(layer), into), "B": (out, ranks(layer))}
      for side, shape in size.items():
        found[f"{start}.lora_{side}.weight"] = rng.standard_normal(shape).astype("f4")
  return found


def write(folder, base, tensors=None, **settings):
  """An adapter's folder."""
  folder.mkdir()
  given = SETTINGS | {"base_model_name_or_path": str(base)} | settings
  (folder / "adapter_config.json").write_text(json.dumps(given))
  if tensors is None:
    tensors = drawn()
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
  return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  root = tmp_path_factory.mktemp("base")
  return tiny_files.hf_folder(root / "hf", dtype=ml_dtypes.bfloat16)


def weights_of(name):
  return {k: v.read() for k, v in reference.open_model(str(name)).weights.items()}


def expected(base, tensors, scale=lambda layer: 2.0):
  """The base plus scale · B A, by the definition."""
  found = {k: v.astype("f4") for k, v in weights_of(base).items()}
  for layer in range(SHAPE.num_layers):
    for name, module in TARGETS.items():
      start = f"base_model.model.model.layers.{layer}.{module}.lora_"
      if f"{start}A.weight" in tensors:
        a, b = (tensors[f"{start}{side}.weight"] for side in "AB")
        found[lora.MATRICES[name]][layer] += scale(layer) * b @ a
  return found


def assert_close(found, wanted):
  assert found.keys() == wanted.keys()
  for path, one in wanted.items():
    np.testing.assert_allclose(found[path], one, atol=1e-5, err_msg=path)


def test_an_adapter_is_its_base_plus_its_product(base, tmp_path):
  folder = write(tmp_path / "a", base)
  opened = reference.open_model(str(folder))
  assert_close(weights_of(folder), wanted := expected(base, drawn()))
  block = (slice(1, 2), slice(3, 9), slice(5, 20))
  part = opened.weights["layers/mlp/up/weight"].read(block, np.float32)
  np.testing.assert_allclose(part, wanted["layers/mlp/up/weight"][block], atol=1e-5)
  assert opened.config == SHAPE and opened.generation_config["temperature"] == 0.5
  tokenizer = reference.load_tokenizer(str(folder))  # the base's
  assert len(tokenizer) == len(tiny_files.tokenizer())


def test_the_base_may_be_named_after_the_folder(base, tmp_path):
  folder = write(tmp_path / "a", "nowhere/at/all")
  refused(folder, "has adapters of nowhere/at/all, which cannot be read")
  named = f"{folder}@{base}"
  assert_close(weights_of(named), expected(base, drawn()))
  assert reference.load_tokenizer(named).chat_template == tiny_files.TEMPLATE
  above = write(tmp_path / "b", named)  # an adapter on an adapter
  twice = expected(base, drawn(), scale=lambda layer: 4.0)
  assert_close(weights_of(above), twice)
  (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
  refused(folder, "names no base", f"{folder}@BASE")


def test_an_adapter_of_the_hub(base, tmp_path, monkeypatch):
  folder = write(tmp_path / "a", base)
  monkeypatch.setattr(locations, "_download", lambda hub_id: folder)
  opened = reference.open_model("hub:org/adapter")
  assert (opened.kind, opened.origin) == ("adapter", "hub:org/adapter")
  assert_close(weights_of("hub:org/adapter"), expected(base, drawn()))


@pytest.mark.parametrize(
  ("settings", "scale"),
  [
    ({"use_rslora": True}, lambda layer: 6 / 3**0.5),
    ({"lora_alpha": 1.5}, lambda layer: 0.5),
    (
      {
        "alpha_pattern": {
          "layers.1.self_attn.q_proj": 3,
          "1.mlp.up_proj": 3,
          r"^model\.layers\.1\.mlp\.down_proj": 3,
        }
      },
      lambda layer: 1.0 if layer == 1 else 2.0,
    ),
    ({"alpha_pattern": {"layers.0.mlp": 3, "proj": 3}}, lambda layer: 2.0),
    (
      {
        "rank_pattern": dict.fromkeys(
          [f"layers.1.{module}" for module in TARGETS.values()], 5
        )
      },
      lambda layer: 6 / 5 if layer == 1 else 2.0,
    ),
    ({"layers_to_transform": [0]}, lambda layer: 2.0),
    ({"exclude_modules": r".*layers\.1\..*"}, lambda layer: 2.0),
  ],
)
def test_scales_are_those_of_peft(base, tmp_path, settings, scale):
  layers = [0] if {"layers_to_transform", "exclude_modules"} & set(settings) else None
  five = "rank_pattern" in settings
  tensors = drawn(lambda layer: 5 if five and layer == 1 else 3, layers)
  folder = write(tmp_path / "a", base, tensors, **settings)
  assert_close(weights_of(folder), expected(base, tensors, scale))


def refused(folder, *words):
  with pytest.raises(errors.UserError) as caught:
    reference.open_model(str(folder))
  for word in words:
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"peft_type": "LOHA"}, ["peft_type=LOHA", "merge_and_unload"]),
    ({"task_type": "SEQ_CLS"}, ["task_type=SEQ_CLS"]),
    ({"use_dora": True}, ["key use_dora is set"]),
    ({"modules_to_save": ["embed_tokens"]}, ["key modules_to_save is set"]),
    ({"trainable_token_indices": [3]}, ["key trainable_token_indices is set"]),
    ({"fan_in_fan_out": True}, ["key fan_in_fan_out is set"]),
    ({"lora_bias": True}, ["key lora_bias is set"]),
    ({"of_next_year": 1}, ["key of_next_year is set"]),
    ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4 changes the weights"]),
    ({"init_lora_weights": 1.5}, ["changes the weights"]),
    ({"r": 0}, ["r=0 is damaged"]),
    ({"r": "3"}, ["r=3 is damaged"]),
    ({"use_rslora": "false"}, ["use_rslora=false is damaged"]),
    ({"lora_alpha": None}, ["lora_alpha=None is damaged"]),
    ({"alpha_pattern": [1]}, ["alpha_pattern=[1] is damaged"]),
    ({"alpha_pattern": {"(a+)+": 1}}, ["alpha_pattern has patterns"]),
    ({"rank_pattern": {"mlp\\": 1}}, ["rank_pattern has patterns"]),
    ({"rank_pattern": {"q_proj": 2}}, ["rank 2", "belongs to another base"]),
    ({"r": 4}, ["rank 4", "belongs to another base"]),
    ({"target_modules": ["q_proj", "o_proj"]}, ["2 of 2 layers", "o_proj"]),
  ],
)
def test_what_is_not_computed_the_same_is_refused(base, tmp_path, settings, words):
  refused(write(tmp_path / "a", base, **settings), *words)


ONE = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda t: t.pop(f"{ONE}A.weight"), ["no other half", "lora_B"]),
    (lambda t: [t.pop(f"{ONE}{x}.weight") for x in "AB"], ["1 of 2 layers", "layer 1"]),
    (
      lambda t: t.update({f"{ONE}magnitude_vector": t[f"{ONE}A.weight"]}),
      ["no adapter"],
    ),
    (
      lambda t: t.update({"base_model.model.lm_head.weight": t[f"{ONE}A.weight"]}),
      ["lm_head.weight is no adapter"],
    ),
    (
      lambda t: t.update({ONE.replace("lora_", "bias"): np.ones(32, "f4")}),
      ["q_proj.bias", "biases were trained", "merge_and_unload"],
    ),
    (
      lambda t: t.update(
        {ONE.replace(".1.", ".01.") + "A.weight": t[f"{ONE}A.weight"]}
      ),
      ["layers.01.self_attn", "no adapter"],
    ),
    (
      lambda t: t.update({ONE.replace(".1.", ".²."): t[f"{ONE}A.weight"]}),
      ["no adapter"],
    ),
    (
      lambda t: t.update(
        {ONE.replace(".1.", ".7.") + f"{x}.weight": t[f"{ONE}{x}.weight"] for x in "AB"}
      ),
      ["2 layers", "another base"],
    ),
    (lambda t: t.clear(), ["has no adapters"]),
  ],
)
def test_other_tensors_are_refused(base, tmp_path, change, words):
  tensors = drawn()
  change(tensors)
  refused(write(tmp_path / "a", base, tensors), *words)


def test_no_bias_is_trained_where_the_model_has_none(base, tmp_path):
  folder = write(tmp_path / "a", base, bias="lora_only")
  assert_close(weights_of(folder), expected(base, drawn()))


def test_a_base_that_cannot_be_read_can_be_replaced(base, tmp_path):
  """Many adapters name a quantised base."""
  quantised = tiny_files.hf_folder(tmp_path / "bnb-4bit")
  config = files.read_json(quantised / "config.json")
  files.write_json(
    quantised / "config.json", config | {"quantization_config": {"load_in_4bit": True}}
  )
  folder = write(tmp_path / "a", quantised)
  refused(folder, "quantization_config", f"name it as {folder}@BASE")
  assert_close(weights_of(f"{folder}@{base}"), expected(base, drawn()))


def test_folders_that_are_not_clear_are_refused(base, tmp_path):
  folder = write(tmp_path / "a", base)
  (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
  refused(folder, "without adapter_model.safetensors (it has adapter_model.bin)")
  both = tiny_files.hf_folder(tmp_path / "m")
  (both / "adapter_config.json").write_text(json.dumps(SETTINGS))
  refused(both, "has an adapter", "whole weights", "remove adapter_config.json")
  half = write(tmp_path / "h", base)
  (half / "adapter_config.json").unlink()
  refused(half, "without adapter_config.json; copy this file")
  (half / "config.json").write_text("{}")
  refused(half, "without adapter_config.json; copy this file")
  circle = write(tmp_path / "c", tmp_path / "c")
  refused(circle, "their own folder", f"{circle} -> {circle}")
  with pytest.raises(errors.UserError, match="their own folder"):
    reference.load_tokenizer(str(circle))


def test_a_rope_of_its_own_is_in_config_json(base, tmp_path):
  folder = write(tmp_path / "a", base)
  other = rope.RopeConfig("linear", SHAPE.rope.theta, 4.0, 256)
  config = tiny_files.config()
  config = model_config.ModelConfig(**vars(config) | {"rope": other, "window": 256})
  path = folder / "config.json"
  path.write_text(json.dumps(model_config.to_hf(config)))
  assert reference.open_model(str(folder)).config == config
  path.write_text(json.dumps(model_config.to_hf(config) | {"vocab_size": 999}))
  refused(folder, "vocab_size is 999, there 320", "@BASE")


def training(base, cache_dir, **changes):
  c = config_lib.tiny(config_lib.default())
  c.model = config_lib.default().model
  c.model.init_from, c.model.compute_dtype = str(base), "float32"
  c.rope = config_lib.default().rope
  c.data.tokenizer, c.data.template = "", "model"
  c.data.cache_dir, c.data.eval, c.data.seq_len = cache_dir, "", 256
  c.batch_size, c.steps, c.checkpoint.every = 2, 1, 1
  c.lora.rank, c.lora.alpha, c.lora.targets = 3, 6.0, "q,up,down"
  c.optim.learning_rate = 0.01
  for key, value in changes.items():
    c.lora[key] = value
  return c


def console():
  return rich_console.Console(quiet=True)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory, cache_dir):
  """The config and the folder of a run whose adapters are the drawn ones."""
  folder = tmp_path_factory.mktemp("peft") / "run"
  adapter = write(folder.with_name("adapter"), base)
  c = training(base, cache_dir, init_from=str(adapter))
  opened = reference.open_model(str(base))
  folder.mkdir()
  native.write_config(
    folder,
    native.Description(
      model_config=SHAPE,
      hf_config=opened.hf_config,
      base=str(base),
      config=c.to_dict(),
      base_digest=adapters.digest(opened.weights),
    ),
  )
  tiny_files.tokenizer().save_pretrained(folder / native.TOKENIZER)
  start = reference.open_adapter(str(adapter)).start(lora.from_config(c.lora), SHAPE)
  place = lambda path, shape, dtype, read: jnp.asarray(read(()).reshape(shape))
  params = reference.build_params(start, np.float32, place)
  saved = checkpoint.Checkpoints(folder, 1, False)
  state = state_lib.TrainState(jnp.int32(1), params, {"mu": jnp.zeros(3)})
  saved.save(state, 1, {"next_index": 1}, 1.0)
  saved.close()
  return c, folder


def test_a_start_is_the_adapter_in_all_layers(finished, base):
  c, folder = finished
  assert_close(weights_of(folder), expected(base, drawn()))
  opened = reference.open_adapter(c.lora.init_from)
  found = opened.start(lora.from_config(c.lora), SHAPE)["layers/mlp/up/lora_b"]
  name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
  block = (slice(1, 2), slice(3, 9), slice(0, 2))
  np.testing.assert_array_equal(found.read(block)[0], drawn()[name][3:9, :2])


def test_a_start_that_was_trained_with_another_rope_is_noted(base, tmp_path, cache_dir):
  adapter = write(tmp_path / "a", base)
  assert reference.open_adapter(str(adapter)).other_rope(SHAPE) is None
  scaled = dataclasses.replace(
    SHAPE,
    window=8 * SHAPE.window,
    rope=dataclasses.replace(
      SHAPE.rope, kind="ntk", factor=8.0, original_window=SHAPE.window
    ),
  )
  (adapter / "config.json").write_text(json.dumps(model_config.to_hf(scaled)))
  opened = reference.open_adapter(str(adapter))
  assert opened.other_rope(scaled) is None  # there it is the base that NTK means
  assert opened.other_rope(SHAPE).theta > 8 * SHAPE.rope.theta
  c = training(base, cache_dir, init_from=str(adapter))
  out = rich_console.Console(file=io.StringIO(), width=1000)
  setup_lib.prepare(c, tmp_path / "run", out)
  assert "were trained with another rope (none, theta" in out.file.getvalue()
  c.rope.kind, c.rope.target_length = "ntk", scaled.window
  out = rich_console.Console(file=io.StringIO(), width=1000)
  setup_lib.prepare(c, tmp_path / "run", out)
  assert "another rope" not in out.file.getvalue()


def test_preferences_are_compared_with_the_adapter_of_the_start(
  base, tmp_path, cache_dir
):
  """And not with its base alone."""
  adapter, found = write(tmp_path / "a", base), []
  for c in (
    training(base, cache_dir, init_from=str(adapter)),
    training(adapter, cache_dir, **OFF),
    training(base, cache_dir),
  ):
    c.data.train, c.data.seq_len = "builtin:pairs:4", 1024
    c.loss.kind, c.loss.beta = "dpo", 0.1
    setup = setup_lib.prepare(c, tmp_path / "run", console())
    found += reference_log_probs.compute(setup)
  np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
  assert np.abs(found[0] - found[2]).max() > 1


@pytest.mark.slow
def test_a_run_starts_from_an_adapter_and_resumes(finished, base, tmp_path):
  """Without a learning rate it stays what it was."""
  c = finished[0].copy_and_resolve_references()
  c.steps, c.optim.learning_rate = 2, 0.0
  assert run.run(c, tmp_path / "run", console()) == 0
  assert_close(weights_of(tmp_path / "run"), expected(base, drawn()))
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
  assert run.run(c, tmp_path / "run", console()) == 0
  assert_close(weights_of(tmp_path / "run"), expected(base, drawn()))
  assert len(tiny.records(tmp_path / "run")) == 2


def test_what_is_exported_comes_back(finished, base, tmp_path, capsys):
  _, folder = finished
  out = tmp_path / "out"
  argv = ["export", "--format=peft", f"--model={folder}", f"--out={out}"]
  assert convert.main(argv) == 0
  assert "note:" not in capsys.readouterr().out
  tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
  wanted = drawn()
  assert tensors.keys() == wanted.keys()
  for name, one in wanted.items():
    np.testing.assert_array_equal(tensors[name], one, err_msg=name)
  settings = json.loads((out / "adapter_config.json").read_text())
  assert settings["base_model_name_or_path"] == str(base)
  assert (settings["r"], settings["lora_alpha"]) == (3, 6)
  assert settings["target_modules"] == ["q_proj", "up_proj", "down_proj"]
  assert settings["task_type"] == "CAUSAL_LM" and settings["inference_mode"] is True
  assert "library_name: peft" in (out / "README.md").read_text()
  assert_close(weights_of(out), weights_of(folder))
  assert reference.load_tokenizer(str(out)).chat_template == tiny_files.TEMPLATE
  again = [*argv[:-1], f"--out={tmp_path / 'low'}", "--dtype=bfloat16"]
  assert convert.main(again) == 0
  low = safetensors.numpy.load_file(tmp_path / "low" / "adapter_model.safetensors")
  assert {one.dtype.name for one in low.values()} == {"bfloat16"}


def test_a_run_is_merged_and_exported_from_an_adapter(base, tmp_path):
  adapter, out = write(tmp_path / "a", base), tmp_path / "hf"
  argv = ["export", f"--model={adapter}", f"--out={out}", "--dtype=float32"]
  assert convert.main(argv) == 0
  assert_close(weights_of(out), weights_of(adapter))


@pytest.mark.parametrize(
  "changes", [{"rank": 0}, {"rank": 4}, {"alpha": 3.0}, {"targets": "q,up"}]
)
def test_other_settings_than_the_adapters_are_refused(
  finished, base, tmp_path, cache_dir, changes
):
  c, _ = finished
  c = training(base, cache_dir, init_from=c.lora.init_from, **changes)
  with pytest.raises(errors.UserError) as caught:
    run.run(c, tmp_path / "run", console())
  for words in ("lora.rank=3", "lora.alpha=6 ", "lora.targets=q,up,down"):
    assert words in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_adapters_of_some_layers_are_no_start(base, tmp_path, cache_dir):
  adapter = write(tmp_path / "a", base, drawn(layers=[0]), layers_to_transform=[0])
  c = training(base, cache_dir, init_from=str(adapter))
  with pytest.raises(errors.UserError, match="start from the merged model"):
    run.run(c, tmp_path / "run", console())
  c.lora.init_from = str(base)
  with pytest.raises(errors.UserError, match="is not an adapter in PEFT's format"):
    run.run(c, tmp_path / "run", console())


def test_what_peft_cannot_have_is_refused_or_noted(finished, base, tmp_path, capsys):
  _, folder = finished
  argv = lambda ref: [
    "export",
    "--format=peft",
    f"--model={ref}",
    f"--out={tmp_path}/o",
  ]
  with pytest.raises(errors.UserError, match="this is not one; use --format=hf"):
    convert.main(argv(base))
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  config = json.loads((copy / "config.json").read_text())
  config["config"]["lora"]["base"] = "bfloat16"
  config["model_config"]["rope"]["theta"] = 5e5
  (copy / "config.json").write_text(json.dumps(config))
  assert convert.main(argv(copy)) == 0
  printed = " ".join(capsys.readouterr().out.split())
  assert "another rope than its base" in printed
  overrides = json.loads(printed.partition("--hf-overrides='")[2].partition("'")[0])
  rope_parameters = {"rope_theta": 5e5, "rope_type": "default"}
  assert overrides["rope_parameters"] == rope_parameters
  opened = reference.open_model(str(tmp_path / "o"))
  assert opened.config == native.read_config(copy).model_config
  config["base"] = config["base_digest"] = None
  (copy / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match="random weights"):
    convert.main(argv(copy))
