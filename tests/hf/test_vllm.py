"""vLLM reads the folders that we export and says what we say: make test-vllm.

vLLM wants an environment of its own, whose Python VLLM_PYTHON names.
"""

import json
import os
import pathlib
import subprocess

import make_goldens
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_files

from skipalign_jax import convert
from skipalign_jax.hf import names, reference
from skipalign_jax.model import inference, model_config

pytestmark = pytest.mark.vllm

LENGTH = 300
MESSAGES = [{"role": "user", "content": "Is it Tuesday?"}]
# Sizes that vLLM's kernels take.
SIZES = {
  "hidden_size": 128,
  "intermediate_size": 192,
  "head_dim": 64,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "vocab_size": 320,
}
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def folder_of(name, path):
  """An exported folder of a golden model of other sizes."""
  # vLLM's Qwen2 takes hidden_size / num_attention_heads as the size of a head.
  sizes = SIZES | {"hidden_size": 256} if name == "qwen2" else SIZES
  c = model_config.from_hf(make_goldens.MODELS[name] | sizes)
  (path / "source").mkdir()
  drawn = make_goldens.weights(names.hf_shapes(c), seed=3)
  safetensors.numpy.save_file(
    {key: value.astype(ml_dtypes.bfloat16) for key, value in drawn.items()},
    path / "source/model.safetensors",
  )
  (path / "source/config.json").write_text(json.dumps(model_config.to_hf(c)))
  tiny_files.tokenizer().save_pretrained(path / "source")
  convert.main(["export", f"--model={path}/source", f"--out={path}/hf"])
  return path / "hf", c


def adapter_of(c, base, path):
  """An adapter in PEFT's format."""
  rng, tensors = np.random.default_rng(0), {}
  for layer in range(c.num_layers):
    for module in MODULES:
      shape = names.hf_shapes(c)[f"model.layers.{layer}.{module}.weight"]
      start = f"base_model.model.model.layers.{layer}.{module}"
      for side, size in {"A": (8, shape[1]), "B": (shape[0], 8)}.items():
        drawn = 0.1 * rng.standard_normal(size)
        tensors[f"{start}.lora_{side}.weight"] = drawn.astype("f4")
  path.mkdir()
  settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
  settings |= {"target_modules": [module.split(".")[-1] for module in MODULES]}
  settings |= {"base_model_name_or_path": str(base)}
  (path / "adapter_config.json").write_text(json.dumps(settings))
  safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
  return path


def theirs(tmp_path, **job):
  (tmp_path / "job.json").write_text(json.dumps(job))
  given = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
  given |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
  dropped = ("PYTHONPATH", "XLA_FLAGS")
  environment = {k: v for k, v in os.environ.items() if k not in dropped}
  done = subprocess.run(
    [
      os.environ["VLLM_PYTHON"],
      pathlib.Path(__file__).parent / "vllm_worker.py",
      tmp_path / "job.json",
    ],
    env=environment | given,
    stdout=subprocess.PIPE,
    text=True,
    timeout=600,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  ("name", "adapted"),
  [
    *((name, False) for name in make_goldens.MODELS),
    ("llama2_gqa", True),
    ("qwen3", True),
  ],
)
def test_vllm_says_the_same(name, adapted, tmp_path):
  folder, c = folder_of(name, tmp_path)
  adapter = adapter_of(c, folder, tmp_path / "adapter") if adapted else None
  prompt = np.random.default_rng(1).integers(3, 300, LENGTH).tolist()
  got = theirs(
    tmp_path,
    model=str(folder),
    adapter=adapter and str(adapter),
    length=LENGTH,
    prompt=prompt,
    messages=MESSAGES,
  )
  opened = reference.open_model(str(adapter or folder))
  engine = inference.Engine(reference.load_params(opened), opened.config, "float32")
  ((log_p, _),) = engine.score([prompt], [1])
  np.testing.assert_allclose(got["log_p"], log_p, atol=1e-4)
  reply = [tokens[0] for tokens in engine.generate([prompt], 8, stop_ids=())]
  assert got["reply"] == reply
  tokenizer = reference.load_tokenizer(str(folder))
  asked = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
  assert got["asked"] == list(asked["input_ids"])
