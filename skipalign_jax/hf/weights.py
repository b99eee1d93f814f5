"""Lazy parameters: a model is opened without reading its weights.

A `Parameter` knows its stacked shape and reads any block of it. The blocks come from a
`TensorSource` (one tensor per layer, as in HF folders and GGUF files) or directly from
a checkpoint; callers see no difference. Memory stays at the block that is read plus
one layer's tensor.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from skipalign_jax.hf import names
from skipalign_jax.model import model_config
from skipalign_jax.runtime import errors, escape

Index = tuple[slice, ...]

# Tensors that older exporters wrote and that the config already determines.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPARED_ROWS = 4096
_HARMLESS = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")


class TensorSource(Protocol):
  """Tensors under their HF names.

  Attributes:
    where: the file or folder, for messages.
    shapes: HF name -> shape of every tensor found.
  """

  where: str
  shapes: dict[str, tuple[int, ...]]

  def dtype(self, name: str) -> np.dtype:
    """What `read` returns."""
    ...

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    """The rows `rows` (axis 0) of one tensor, nothing else touched."""
    ...


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter, layers stacked on axis 0.

  Attributes:
    path: e.g. layers/attn/q/weight.
    shape: of the whole parameter.
    dtype: as stored.
    read_block: (index, dtype) -> that block of it, converted.
    chunk_layers: layers that one read decodes together; reading that many at a
      time avoids decoding them again.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read_block: Callable[[Index, np.dtype], np.ndarray]
  chunk_layers: int = 1

  def read(self, index: Index = (), dtype: np.dtype | str | None = None) -> np.ndarray:
    """The block at `index`, as `dtype` (the stored one by default).

    Args:
      index: one slice per axis; missing ones, and open ends, take everything.
      dtype: what to convert to while reading.
    """
    assert len(index) <= len(self.shape), (self.path, index)
    index = index + (slice(None),) * (len(self.shape) - len(index))
    full = tuple(
      slice(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)
    )
    return self.read_block(full, np.dtype(dtype or self.dtype))

  def layer(self, i: int, dtype: np.dtype | str | None = None) -> np.ndarray:
    """Layer `i` of a stacked parameter, without the layer axis."""
    assert names.is_stacked(self.path), self.path
    return self.read((slice(i, i + 1),), dtype)[0]


def stacked(
  config: model_config.ModelConfig, source: TensorSource
) -> dict[str, Parameter]:
  """Path -> parameter of a model stored as one tensor per layer.

  Raises:
    UserError: a tensor is missing, has another shape, or is not of this model.
  """
  check_tensors(config, source)
  parameters = {}
  for path, shape in names.expected_shapes(config).items():
    layers = range(config.num_layers if names.is_stacked(path) else 1)
    stored = {source.dtype(names.hf_name(path, i)) for i in layers}
    # If the layers differ in type (some keep norms in fp32), the parameter is fp32.
    dtype = stored.pop() if len(stored) == 1 else np.dtype(np.float32)
    parameters[path] = Parameter(path, shape, dtype, _reader(path, source))
  return parameters


def sample(parameters: Mapping[str, Parameter]) -> str:
  """A digest of one row of each parameter, which other weights do not have.

  It is no proof: a few other values may be elsewhere. To read all would take minutes.
  """
  checksum = 0
  for path in sorted(parameters):
    parameter = parameters[path]
    middle = tuple(slice(n // 2, n // 2 + 1) for n in parameter.shape[:-1])
    row = np.ascontiguousarray(parameter.read(middle, np.float32))
    checksum = zlib.crc32(row, checksum)
  return f"{checksum:08x}"


def _reader(path: str, source: TensorSource) -> Callable[[Index, np.dtype], np.ndarray]:
  def one(layer: int, index: Index) -> np.ndarray:
    return source.read(names.hf_name(path, layer), index[0])[(slice(None), *index[1:])]

  def read_block(index: Index, dtype: np.dtype) -> np.ndarray:
    if not names.is_stacked(path):
      return one(0, index).astype(dtype, copy=False)
    layers = range(index[0].start, index[0].stop, index[0].step)
    inner = [len(range(s.start, s.stop, s.step)) for s in index[1:]]
    block = np.empty((len(layers), *inner), dtype)
    for row, layer in enumerate(layers):
      block[row] = one(layer, index[1:])
    return block

  return read_block


def check_tensors(config: model_config.ModelConfig, source: TensorSource) -> None:
  """Raises UserError unless the tensors and their shapes are those of `config`."""
  expected = names.hf_shapes(config)
  missing = [name for name in expected if name not in source.shapes]
  if missing:
    raise errors.UserError(
      f"{source.where}: {len(missing)} of {len(expected)} tensors are missing: "
      f"{escape.listed(missing)}. {_why_missing(missing, source)}"
    )
  wrong = [
    f"{name} is {list(source.shapes[name])}, expected {list(shape)}"
    for name, shape in expected.items()
    if source.shapes[name] != shape
  ]
  if wrong:
    raise errors.UserError(
      f"{source.where}: {len(wrong)} tensors do not fit config.json: "
      f"{escape.listed(wrong)}"
    )
  extra = [
    name
    for name in source.shapes
    if name not in expected
    and not name.endswith(_HARMLESS)
    and not (config.tie_embeddings and name == _HEAD)  # compared below
  ]
  if extra:
    raise errors.UserError(
      f"{source.where}: {len(extra)} tensors are not part of a {config.family} model "
      f"of this config.json and would be dropped: {escape.listed(extra)}"
    )
  if config.tie_embeddings and _HEAD in source.shapes:
    _check_copy(source)


def _check_copy(source: TensorSource) -> None:
  """Raises UserError unless the head of a tied model is a copy of its embedding."""
  shape = source.shapes[_EMBEDDING]
  same = source.shapes[_HEAD] == shape
  for start in range(0, shape[0] if same else 0, _COMPARED_ROWS):
    rows = slice(start, min(start + _COMPARED_ROWS, shape[0]))
    head, embedding = (
      source.read(name, rows).astype(np.float32) for name in (_HEAD, _EMBEDDING)
    )
    same = same and np.array_equal(head, embedding, equal_nan=True)
  if not same:
    raise errors.UserError(
      f"{source.where}: config.json has tie_word_embeddings true, but {_HEAD} is not a "
      f"copy of {_EMBEDDING}: transformers 5 uses it, transformers 4 does not. In a "
      "copy of the folder, set tie_word_embeddings to false to use it, or remove it"
    )


def _why_missing(missing: list[str], source: TensorSource) -> str:
  """The likely cause and the remedy, from the names that are there."""
  there = f"It has {escape.listed(list(source.shapes), 3)}"
  for prefix, cause in _PREFIXES.items():
    if any(name.startswith(prefix) for name in source.shapes):
      return f"{there}: {cause}"
  if missing == [_HEAD]:
    return (
      "Was it saved without its output matrix, as AutoModel? Save it with "
      "AutoModelForCausalLM; if the output matrix is the embedding, set "
      "tie_word_embeddings to true in a copy of the folder"
    )
  return f"{there}. The download is incomplete or config.json is another model's"


_PREFIXES = {
  "base_model.model.": (
    "names of a PEFT model. Merge its adapters with merge_and_unload(), then "
    "save_pretrained()"
  ),
  "module.": (
    "names of a wrapped model (DataParallel). Save the model inside: "
    "model.module.save_pretrained()"
  ),
  "_orig_mod.": (
    "names of a compiled model. Save the model inside: "
    "model._orig_mod.save_pretrained()"
  ),
}


class Renamed:
  """A source whose tensors have other names.

  Attributes:
    where, shapes: see `TensorSource`; with the new names.
  """

  def __init__(self, source: TensorSource, stored: Mapping[str, str]):
    """`stored`: new name → name in `source`."""
    self._source, self._stored, self.where = source, stored, source.where
    self.shapes = {name: source.shapes[old] for name, old in stored.items()}

  def dtype(self, name: str) -> np.dtype:
    return self._source.dtype(self._stored[name])

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    return self._source.read(self._stored[name], rows)


def with_usual_names(source: TensorSource, tied: bool) -> TensorSource:
  """The source with the names that transformers writes.

  A model that was saved without its head lacks the prefix "model.". One that was saved
  with safetensors' `save_model` has the matrix of tied embeddings as its head only.

  Args:
    source: tensors of a model.
    tied: the output matrix is the embedding.
  """
  stored = {name: name for name in source.shapes}
  bare = _EMBEDDING.removeprefix("model.")
  if bare in stored and not any(name.startswith("model.") for name in stored):
    stored = {name if name == _HEAD else f"model.{name}": name for name in stored}
  if tied and _HEAD in stored and _EMBEDDING not in stored:
    stored[_EMBEDDING] = stored.pop(_HEAD)
  return Renamed(source, stored)


def check_finite(name: str, tensor: np.ndarray) -> None:
  """Refuses a tensor with NaN or infinite weights; `name` is its HF name.

  Raises:
    UserError: there are such weights.
  """
  if not np.isfinite(tensor).all():
    raise errors.UserError(
      f"{name} has weights that are NaN or infinite, so the model is damaged; take "
      "another checkpoint, or download it again"
    )


def hf_tensors(
  parameters: dict[str, Parameter], dtype: np.dtype | str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """(HF name, tensor) of every parameter, parameter after parameter.

  Not layer after layer: a training checkpoint may have all layers of a
  parameter in one compressed chunk, so it is decoded once.

  Args:
    parameters: path -> parameter.
    dtype: of the tensors; the stored one by default.
  """
  for path, parameter in parameters.items():
    if not names.is_stacked(path):
      yield names.hf_name(path), parameter.read((), dtype)
      continue
    for start in range(0, parameter.shape[0], parameter.chunk_layers):
      block = parameter.read((slice(start, start + parameter.chunk_layers),), dtype)
      for i, tensor in enumerate(block):
        yield names.hf_name(path, start + i), tensor
