"""Headers and tokenizer files of models: counted before a library reads them."""

import json
import pathlib
import struct

import gguf
import numpy as np
import pytest
import safetensors
import tiny_files as tiny
import transformers

from skipalign_jax.hf import (
  gguf_header,
  reference,
  safetensors_files,
  tokenizer_files,
)
from skipalign_jax.runtime import errors, json_limits


@pytest.mark.parametrize(
  "header",
  [
    '{"a": [%s]}',
    '{"__metadata__": [%s]}',
    '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 0]}}',
  ],
)
def test_safetensors_headers(tmp_path, monkeypatch, header):
  made = tiny.hf_folder(tmp_path / "m")
  text = (header % ",".join(["[]"] * 200)).encode()
  whole = struct.pack("<Q", len(text)) + text
  (made / "model.safetensors").write_bytes(whole)

  def never(*args, **kwargs):
    raise AssertionError("read by the library")

  monkeypatch.setattr(safetensors, "safe_open", never)
  monkeypatch.setattr(safetensors_files, "_MAX_HEADER_VALUES", 100)
  with pytest.raises(
    errors.UserError, match=r"model.safetensors.*more than 100 values"
  ):
    reference.open_model(str(made))


@pytest.mark.parametrize("name", tokenizer_files.MAX_VALUES)
def test_tokenizer_files(tmp_path, monkeypatch, name):
  made = tiny.hf_folder(tmp_path / "m")
  reference.load_tokenizer(str(made))  # a usual one is read
  monkeypatch.setitem(tokenizer_files.MAX_VALUES, name, 100)
  (made / name).write_text('{"a": [' + "[]," * 100 + "1]}")

  def never(*args, **kwargs):
    raise AssertionError("read by the library")

  loader = transformers.PreTrainedTokenizerFast
  monkeypatch.setattr(loader, "from_pretrained", never)
  with pytest.raises(errors.UserError, match=f"{name}.*more than 100 values"):
    reference.load_tokenizer(str(made))


def test_objects_of_a_tokenizer(tmp_path, monkeypatch):
  made = tiny.hf_folder(tmp_path / "m")
  monkeypatch.setattr(tokenizer_files, "MAX_OBJECTS", 3)
  with pytest.raises(errors.UserError, match=r"tokenizer\.json.*objects"):
    reference.load_tokenizer(str(made))


@pytest.mark.parametrize(
  "name", ["chat_template.jinja", "additional_chat_templates/a.jinja"]
)
def test_files_of_long_templates(tmp_path, monkeypatch, name):
  made = tiny.hf_folder(tmp_path / "m")
  monkeypatch.setattr(tokenizer_files, "MAX_TEMPLATE_BYTES", 2000)
  (made / name).parent.mkdir(exist_ok=True)
  (made / name).write_text("x" * 2001)
  with pytest.raises(errors.UserError, match=r"a\w*\.jinja: .*2,001 characters"):
    reference.load_tokenizer(str(made))


def test_long_templates_of_a_tokenizer_config(tmp_path, monkeypatch):
  made = tiny.hf_folder(tmp_path / "m")
  (made / "chat_template.jinja").unlink(missing_ok=True)
  path = made / "tokenizer_config.json"
  content = json.loads(path.read_text()) | {"chat_template": "x" * 2001}
  path.write_text(json.dumps(content))
  monkeypatch.setattr(tokenizer_files, "MAX_TEMPLATE_BYTES", 2000)
  with pytest.raises(errors.UserError, match="2,001 characters"):
    reference.load_tokenizer(str(made))


def test_configs_and_indices_have_a_limit(tmp_path):
  made = tiny.hf_folder(tmp_path / "m", shards=2)
  many = "[" + "0," * json_limits.MAX_VALUES + "0]"
  for name in ("model.safetensors.index.json", "config.json"):
    (made / name).write_text(f'{{"a": {many}}}')
    with pytest.raises(errors.UserError, match=f"{name}.*more than 1,000,000 values"):
      reference.open_model(str(made))


@pytest.mark.parametrize("name", ["llama2_gqa", "qwen2", "biases"])
def test_gguf_headers_equal_those_of_the_gguf_package(tmp_path, name):
  metadata = {"a.flag": True, "a.number": 2.5, "a.text": "é"}
  path = pathlib.Path(tiny.gguf_file(tmp_path / "m.gguf", name, metadata=metadata))
  ours, theirs = gguf_header.read(path), gguf.GGUFReader(path)
  values = {key: field.contents() for key, field in theirs.fields.items()}
  assert ours.metadata == {k: v for k, v in values.items() if k[:5] != "GGUF."}
  assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
  for tensor in theirs.tensors:
    found = ours.tensors[tensor.name]
    assert found.kind == tensor.tensor_type
    assert found.shape == tuple(tensor.shape.tolist()[::-1])
    assert found.data.dtype == tensor.data.dtype
    np.testing.assert_array_equal(found.data, tensor.data)


def text(value: bytes) -> bytes:
  return struct.pack("<Q", len(value)) + value


def entry(kind: int, value: bytes, key: bytes = b"k") -> bytes:
  return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, *sizes: int, kind: int = 0, at: int = 0) -> bytes:
  shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
  return text(name) + shape + struct.pack("<IQ", kind, at)


@pytest.mark.parametrize(
  ("entries", "tensors", "message"),
  [
    ([entry(9, struct.pack("<IQ", 8, 11) + text(b"") * 11)], [], "claim 11 texts"),
    ([entry(9, struct.pack("<IQ", 4, 31) + bytes(124))], [], "claim 31 elements"),
    ([entry(8, text(b"a" * 3000))], [], "more than 0 MiB"),
    ([entry(8, text(b"\xff"))], [], "utf-8"),
    ([entry(4, bytes(4))] * 2, [], "'k' is there twice"),
    ([entry(4, bytes(4), b"general.alignment")], [], "general.alignment is 0"),
    ([], [tensor(b"a", 1), tensor(b"a", 1)], "'a' is there twice"),
    ([], [tensor(b"a", 0, 2**62)], "'a' has no elements"),
    ([], [tensor(b"a", 2**40)], "'a' does not fit"),
    ([], [tensor(b"a", 1, at=2**63)], "'a' does not fit"),
    ([], [tensor(b"a", 2**63, 2**63, 2**63)], "'a' does not fit"),
    ([], [tensor(b"a", 33, kind=8)], "damaged"),  # not a whole number of blocks
    ([], [tensor(b"a", kind=8)], "damaged"),
    ([], [tensor(b"a", 1, kind=999)], "damaged"),
  ],
)
def test_bad_gguf_headers(tmp_path, monkeypatch, entries, tensors, message):
  monkeypatch.setattr(gguf_header, "MAX_TEXTS", 10)
  monkeypatch.setattr(gguf_header, "MAX_ELEMENTS", 30)
  monkeypatch.setattr(gguf_header, "MAX_BYTES", 2000)
  start = struct.pack("<IQQ", 3, len(tensors), len(entries))
  path = tmp_path / "m.gguf"
  path.write_bytes(b"GGUF" + start + b"".join([*entries, *tensors]) + bytes(4096))
  with pytest.raises(errors.UserError, match=f"damaged GGUF file.*{message}|{message}"):
    reference.open_model(str(path))
