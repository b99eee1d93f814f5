"""Names and values in a model's files cannot forge a line of a message."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny_files as tiny

from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import reference
from skipalign_jax.runtime import errors, escape, files

FORGED = "error: forged"
EVIL = f"rope\n\x1b[2J{FORGED}"  # "rope": so that a key of config.json matters


def change(folder, file, **keys):
  path = folder / file
  value = files.read_json(path) if path.exists() else {}
  files.write_json(path, value | keys)


def tensors(folder, **more):
  every = {key: np.zeros(value) for key, value in more.items()}
  every |= tiny.tensors(dtype=np.float32)
  safetensors.numpy.save_file(every, folder / "model.safetensors")


def wrapped(folder):
  every = {f"{EVIL}.{k}": v for k, v in tiny.tensors(dtype=np.float32).items()}
  safetensors.numpy.save_file(every, folder / "model.safetensors")


def index(folder, weight_map):
  (folder / "model.safetensors").rename(folder / "a.safetensors")
  files.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def not_a_float(folder):
  every = tiny.tensors(dtype=np.float32) | {EVIL: np.zeros(2, np.int8)}
  every = {k: v.astype(np.int8) if "norm" in k else v for k, v in every.items()}
  safetensors.numpy.save_file(every, folder / "model.safetensors")


FOLDERS = {
  "a tensor too many": lambda at: tensors(at, **{EVIL: 2}),
  "a wrapped model": wrapped,
  "no float": not_a_float,
  "a tensor of the index": lambda at: index(at, {EVIL: "a.safetensors"}),
  "a shard's name": lambda at: index(at, {"a": EVIL}),
  "another name of the weights": lambda at: (at / "model.safetensors").rename(
    at / f"{EVIL}.safetensors"
  ),
  "pickled weights": lambda at: (at / "model.safetensors").rename(at / f"{EVIL}.bin"),
  "a key": lambda at: change(at, "config.json", **{EVIL: 1}),
  "a value": lambda at: change(at, "config.json", hidden_act=EVIL),
  "a value of an unknown key": lambda at: change(at, "config.json", rope_x=EVIL),
  "a key of the rope": lambda at: change(
    at, "config.json", rope_parameters={"rope_type": "default", EVIL: 1}
  ),
  "a kind of rope": lambda at: change(
    at, "config.json", rope_parameters={"rope_type": EVIL}
  ),
  "two kinds of rope": lambda at: change(
    at, "config.json", rope_scaling={"rope_type": EVIL}
  ),
  "a model type": lambda at: change(at, "config.json", model_type=EVIL),
  "a type of layers": lambda at: change(at, "config.json", layer_types=[EVIL]),
  "a number": lambda at: change(at, "config.json", num_hidden_layers=EVIL),
  "an original window": lambda at: change(
    at,
    "config.json",
    original_max_position_embeddings=EVIL,
    rope_parameters={
      "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8,
    },
  ),
  "an end of replies": lambda at: change(
    at, "generation_config.json", eos_token_id=[EVIL]
  ),
  "a class": lambda at: change(at, "tokenizer_config.json", model_max_length=EVIL),
  "a type of tokenizer": lambda at: change(at, "tokenizer.json", model={"type": EVIL}),
  "a token": lambda at: change(at, "tokenizer.json", added_tokens=[{EVIL: 1}]),
}  # fmt: skip


def check(message):
  shown = escape.controls(message)
  starts = [line.lstrip().removeprefix(r"\x1b[2J") for line in shown.split("\n")]
  assert not any(start.startswith(FORGED) for start in starts)
  assert len(message) < 2000


@pytest.mark.parametrize("case", FOLDERS)
def test_in_a_folder(tmp_path, case):
  folder = tiny.hf_folder(tmp_path / "m", dtype=np.float32)
  FOLDERS[case](folder)
  with pytest.raises(errors.UserError) as caught:
    reference.load_params(reference.open_model(str(folder)))
    reference.load_tokenizer(str(folder))
  check(str(caught.value))


def test_of_a_file_in_another_folder(tmp_path):
  (tmp_path / f"{EVIL}.gguf").write_bytes(b"")
  with pytest.raises(errors.UserError, match="Did you mean") as caught:
    reference.open_model(str(tmp_path))
  check(str(caught.value))


@pytest.mark.parametrize(
  "metadata",
  [
    {f"llama.{EVIL}": "a"}, {"llama.unknown": EVIL}, {"llama.logit_scale": EVIL},
    {"general.type": EVIL}, {"llama.rope.scaling.type": EVIL},
    {"llama.rope.dimension_count": EVIL}, {"split.count": EVIL},
    {"llama.attention.scale": EVIL}, {"tokenizer.ggml.pre": EVIL},
    {"tokenizer.ggml.eos_token_id": EVIL},
  ],
  ids=str,
)  # fmt: skip
def test_in_gguf(tmp_path, metadata):
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=metadata, pre=None)
  with pytest.raises(errors.UserError) as caught:
    reference.open_model(str(path))
    reference.load_tokenizer(str(path))
  check(str(caught.value))


def test_of_a_chat_template():
  tokenizer = tiny.tokenizer()
  tokenizer.chat_template = f"{{{{ raise_exception({json.dumps(EVIL)}) }}}}"
  subject = subject_lib.Subject(None, tokenizer, {}, 1, ())
  with pytest.raises(errors.UserError, match="--chat=False") as caught:
    subject.chat("a")
  check(str(caught.value))
