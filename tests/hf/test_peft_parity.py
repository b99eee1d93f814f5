"""With peft itself: what we export it loads, what it saves we read (extra: parity)."""

import json

import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest
import test_peft
import tiny_files

from skipalign_jax import convert
from skipalign_jax.hf import peft_config, reference
from skipalign_jax.model import decoder
from skipalign_jax.runtime import errors
from skipalign_jax.training import run

pytestmark = pytest.mark.torch

TOKENS_L = make_goldens.tokens(300)[0]
BOUND = 1e-4  # of logits up to about 20, in fp32


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_files.hf_folder(tmp_path_factory.mktemp("base") / "hf")


def of_transformers(model):
  import torch

  with torch.no_grad():
    return model(torch.tensor(np.array(TOKENS_L)[None])).logits[0].numpy()


def load_base(folder):
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def ours(name):
  opened = reference.open_model(str(name))
  out = decoder.logits(
    reference.load_params(opened),
    opened.config,
    jnp.asarray(TOKENS_L)[None],
    jnp.arange(len(TOKENS_L))[None],
    jnp.ones((1, len(TOKENS_L)), jnp.int32),
    "float32",
  )
  return np.asarray(out)[0]


def test_peft_loads_what_is_exported(base, tmp_path, cache_dir):
  import peft

  c = test_peft.training(base, cache_dir)
  c.steps, c.optim.learning_rate = 3, 0.05
  assert run.run(c, tmp_path / "run", test_peft.console()) == 0
  out, whole = tmp_path / "out", tmp_path / "whole"
  argv = ["export", "--format=peft", f"--model={tmp_path / 'run'}", f"--out={out}"]
  assert convert.main(argv) == 0
  argv = ["export", f"--model={tmp_path / 'run'}", f"--out={whole}", "--dtype=float32"]
  assert convert.main(argv) == 0
  loaded = peft.PeftModel.from_pretrained(load_base(base), out)
  found = of_transformers(loaded)
  exported, read = of_transformers(load_base(whole)), ours(out)
  merged = of_transformers(loaded.merge_and_unload())
  for other in (exported, merged, read):
    print(f"largest difference {np.abs(found - other).max():.2e}")
    np.testing.assert_allclose(found, other, atol=BOUND)
  moved = np.abs(found - of_transformers(load_base(base))).max()
  print(f"largest logit {np.abs(found).max():.1f}, moved by up to {moved:.2f}")
  assert moved > 100 * BOUND


@pytest.mark.parametrize(
  "settings",
  [
    dict(target_modules=["q_proj", "v_proj", "down_proj"]),
    dict(target_modules="all-linear", use_rslora=True),
    dict(target_modules=["v_proj"], bias="all"),  # this base has none
    dict(target_modules=["k_proj", "o_proj"], layers_to_transform=[1]),
    dict(target_modules=r".*\.mlp\.(up|gate)_proj", lora_dropout=0.3),
    dict(
      target_modules=["q_proj", "up_proj"],
      rank_pattern={"layers.1.mlp.up_proj": 7, "q_proj": 2},
      alpha_pattern={"model.layers.0.self_attn.q_proj": 5, "up_proj": 3},
      init_lora_weights="gaussian",
    ),
  ],
)
def test_we_read_what_peft_saves(base, tmp_path, settings):
  import peft
  import torch

  torch.manual_seed(0)
  given = peft.LoraConfig(r=4, lora_alpha=9, task_type="CAUSAL_LM", **settings)
  model = peft.get_peft_model(load_base(base), given)
  for name, parameter in model.named_parameters():
    if "lora_B" in name:
      parameter.data.normal_(std=0.2)
  model.eval().save_pretrained(tmp_path / "adapter")
  difference = np.abs(ours(tmp_path / "adapter") - of_transformers(model)).max()
  moved = np.abs(of_transformers(model) - of_transformers(load_base(base))).max()
  print(f"largest difference {difference:.2e}, moved by up to {moved:.2f}")
  assert difference < BOUND < 0.01 * moved


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(use_dora=True), "use_dora"),
    (dict(modules_to_save=["lm_head"]), "modules_to_save"),
    (dict(lora_bias=True), "lora_bias"),
    (dict(init_lora_weights="pissa"), "init_lora_weights=pissa"),
    (dict(init_lora_weights="olora"), "init_lora_weights=olora"),
    (dict(layer_replication=[[0, 2], [0, 2]]), "layer_replication"),
    (dict(trainable_token_indices=[1, 2]), "trainable_token_indices"),
  ],
)
def test_what_peft_computes_in_another_way_is_refused(base, tmp_path, settings, words):
  import peft

  given = peft.LoraConfig(
    r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings
  )
  given.base_model_name_or_path = str(base)
  given.save_pretrained(tmp_path)
  with pytest.raises(errors.UserError, match=words):
    peft_config.read(tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_are_in_the_file(tmp_path, bias):
  import peft

  base = tiny_files.hf_folder(tmp_path / "hf", "qwen2")
  given = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", bias=bias)
  peft.get_peft_model(load_base(base), given).save_pretrained(tmp_path / "adapter")
  with pytest.raises(errors.UserError, match=r"bias: biases were trained, too"):
    reference.open_model(str(tmp_path / "adapter"))


def test_every_key_of_peft_is_known_or_off_by_default(base, tmp_path):
  import peft

  peft.LoraConfig(r=4, task_type="CAUSAL_LM").save_pretrained(tmp_path)
  assert len(json.loads((tmp_path / "adapter_config.json").read_text())) > 30
  assert peft_config.read(tmp_path).rank == 4


def test_other_kinds_of_adapters_are_refused(tmp_path):
  import peft

  for number, kind in enumerate((peft.IA3Config, peft.LoHaConfig, peft.AdaLoraConfig)):
    more = {"total_step": 9} if kind is peft.AdaLoraConfig else {}
    kind(task_type="CAUSAL_LM", **more).save_pretrained(tmp_path / str(number))
    with pytest.raises(errors.UserError, match="only adapters of the type LORA"):
      peft_config.read(tmp_path / str(number))
