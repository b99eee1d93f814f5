"""Our logits equal those of transformers: goldens, and live where torch is."""

import dataclasses
import json

import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest

from skipalign_jax.hf import locations, names, reference, weights
from skipalign_jax.model import decoder, model_config

GOLDENS = np.load(make_goldens.FOLDER / "logits.npz")


class DictSource:
  """Tensors held in memory, as `weights.TensorSource` wants them."""

  where = "memory"

  def __init__(self, tensors):
    self.tensors = tensors
    self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

  def dtype(self, name):
    return self.tensors[name].dtype

  def read(self, name, rows=slice(None)):
    return self.tensors[name][rows]


def tiny(name):
  """(config, parameter tree) of one golden model."""
  config = model_config.from_hf(make_goldens.MODELS[name])
  seed = list(make_goldens.MODELS).index(name)
  source = DictSource(make_goldens.weights(names.hf_shapes(config), seed))
  opened = reference.Model(
    name, locations.Location("hf", None), config, {}, None,
    weights.stacked(config, source),
  )  # fmt: skip
  return config, reference.load_params(opened)


def run(config, params, positions_L):
  tokens_BL = jnp.asarray(make_goldens.tokens(config.vocab_size), jnp.int32)
  positions_BL = jnp.asarray(positions_L, jnp.int32)[None]
  segment_ids_BL = jnp.ones_like(tokens_BL)
  out = decoder.logits(
    params, config, tokens_BL, positions_BL, segment_ids_BL, "float32"
  )
  return np.asarray(out)


@pytest.mark.parametrize("kind", ["contiguous", "skipped"])
@pytest.mark.parametrize("name", make_goldens.MODELS)
def test_logits_equal_transformers(name, kind):
  config, params = tiny(name)
  positions_L = make_goldens.positions(kind, config.window)
  ours = run(config, params, positions_L)
  np.testing.assert_allclose(ours, GOLDENS[f"{name}/{kind}"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", make_goldens.MODELS)
def test_positions_and_biases_reach_the_logits(name):
  """What makes the golden test able to fail: each ingredient moves the logits."""
  config, params = tiny(name)
  contiguous = GOLDENS[f"{name}/contiguous"]
  skipped = GOLDENS[f"{name}/skipped"]
  assert np.abs(contiguous - skipped).max() > 0.02
  attn, others = params["layers"]["attn"], []
  if config.attention_bias:
    others.append((config, attn | {"q": attn["q"] | {"bias": 0 * attn["q"]["bias"]}}))
  if config.qk_norm:
    ones = {"weight": jnp.ones_like(attn["k_norm"]["weight"])}
    others.append((config, attn | {"k_norm": ones}))
  if config.nope_layers:
    others.append((dataclasses.replace(config, nope_layers=()), attn))
  for other, attn in others:
    layers = params["layers"] | {"attn": attn}
    changed = run(other, params | {"layers": layers}, np.arange(make_goldens.LENGTH))
    assert np.abs(changed - contiguous).max() > 0.02


@pytest.mark.torch
@pytest.mark.parametrize("name", make_goldens.MODELS)
def test_exported_folder_loads_in_transformers(name, tmp_path):
  """Config and weights survive the trip: their logits from our folder."""
  torch = pytest.importorskip("torch")
  import transformers

  from skipalign_jax.hf import safetensors_files

  hf = make_goldens.MODELS[name]
  config = model_config.from_hf(hf)
  seed = list(make_goldens.MODELS).index(name)
  drawn = make_goldens.weights(names.hf_shapes(config), seed)
  safetensors_files.write_tensors(tmp_path, drawn.items(), 4096)
  written = model_config.to_hf(config) | {"pad_token_id": None}  # as export writes it
  (tmp_path / "config.json").write_text(json.dumps(written))
  theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert type(theirs).__name__ == written["architectures"][0]
  assert type(theirs).config_class.model_type == hf["model_type"]
  assert not any(loading.values()), loading
  for kind in ("contiguous", "skipped"):
    positions_L = make_goldens.positions(kind, config.window)
    with torch.no_grad():
      logits = theirs(
        input_ids=torch.tensor(make_goldens.tokens(config.vocab_size)),
        position_ids=torch.tensor(positions_L)[None],
        attention_mask=torch.ones(1, len(positions_L), dtype=torch.long),
      ).logits.numpy()
    np.testing.assert_allclose(logits, GOLDENS[f"{name}/{kind}"], atol=1e-5)
