"""An adapter in PEFT's format: with its base it is a model, or a run starts from it.

    adapter_config.json         see peft_config.py
    adapter_model.safetensors   base_model.model.MODULE.lora_A.weight and lora_B.weight
    config.json                 optional: the model's, where its rope is not the base's

Shapes: n layers, I/O in/out features, R rank.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from skipalign_jax.hf import names, peft_config, safetensors_files, weights
from skipalign_jax.model import lora, model_config, rope
from skipalign_jax.runtime import errors, escape, files

FILE = "adapter_model.safetensors"
_SIDES = {".lora_A.weight": "a", ".lora_B.weight": "b"}
_REMEDY = "With peft, merge_and_unload() and save_pretrained() make a whole model"


@dataclasses.dataclass(frozen=True)
class Pair:
  """A and B of one matrix.

  Attributes:
    a, b: names of their tensors.
    rank: R.
    scale: of B A.
  """

  a: str
  b: str
  rank: int
  scale: float


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter whose headers are read.

  Attributes:
    config: its settings.
    pairs: path of a matrix → layer → its A and B.
  """

  config: peft_config.AdapterConfig
  pairs: Mapping[str, Mapping[int, Pair]]
  _tensors: safetensors_files.SafetensorsFolder

  def check_shapes(self, config: model_config.ModelConfig) -> None:
    """Raises UserError unless the adapter fits a model of this shape."""
    shapes = names.expected_shapes(config)
    where = self._tensors.where
    for path, layers in self.pairs.items():
      n, out, into = shapes[path]
      for layer, pair in layers.items():
        found = self._tensors.shapes[pair.a], self._tensors.shapes[pair.b]
        if layer >= n or found != ((pair.rank, into), (out, pair.rank)):
          raise errors.UserError(
            f"{where}: {pair.a} and {pair.b} are {list(found[0])} and "
            f"{list(found[1])}. An adapter of rank {pair.rank} on the base, which has "
            f"{n} layers with {[out, into]} there, is not like this: it belongs to "
            "another base"
          )
    for name in self.config.everywhere:
      path = lora.MATRICES[name]
      missing = sorted(set(range(shapes[path][0])) - set(self.pairs.get(path, {})))
      if missing:
        raise errors.UserError(
          f"{where}: {len(missing)} of {shapes[path][0]} layers have no adapter on "
          f"{name}_proj, the first one is layer {missing[0]}: the file is incomplete, "
          "or belongs to another base"
        )

  def merged(self, base: dict[str, weights.Parameter]) -> dict[str, weights.Parameter]:
    """Path → lazy parameter of the base plus scale · B A, computed in fp32."""
    return {
      path: weights.Parameter(
        path,
        one.shape,
        np.dtype(np.float32),
        self._reader(one, self.pairs[path]) if path in self.pairs else one.read_block,
        one.chunk_layers,
      )
      for path, one in base.items()
    }

  def _reader(self, base: weights.Parameter, layers: Mapping[int, Pair]):
    def read_block(index: weights.Index, dtype: np.dtype) -> np.ndarray:
      block_nOI = np.require(base.read(index, np.float32), requirements="W")
      of_layers, outs, ins = index
      numbers = range(of_layers.start, of_layers.stop, of_layers.step)
      for row, layer in enumerate(numbers):
        if layer in layers:
          a_RI, b_OR = self._read(layers[layer])
          block_nOI[row] += layers[layer].scale * (b_OR[outs] @ a_RI[:, ins])
      return block_nOI.astype(dtype, copy=False)

    return read_block

  def _read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    a_RI, b_OR = (
      self._tensors.read(name).astype(np.float32) for name in (pair.a, pair.b)
    )
    return a_RI, b_OR

  def start(
    self, wanted: lora.Config | None, shape: model_config.ModelConfig
  ) -> dict[str, weights.Parameter]:
    """Path → A or B of all layers, [n, R, I] or [n, O, R], that training starts from.

    Args:
      wanted: the adapters of the run.
      shape: of the model.

    Raises:
      UserError: the adapter is not of these settings, or does not fit the model.
    """
    self.check_shapes(shape)
    self._check_settings(wanted, shape)
    found = {}
    shapes = names.expected_shapes(shape)
    for name in wanted.targets:
      path = lora.MATRICES[name]
      n, out, into = shapes[path]
      layers = [self.pairs[path][i] for i in range(n)]
      sizes = {"a": (n, wanted.rank, into), "b": (n, out, wanted.rank)}
      for side, size in sizes.items():
        at = path.replace("/weight", f"/lora_{side}")
        tensors = [getattr(pair, side) for pair in layers]
        found[at] = weights.Parameter(
          at, size, np.dtype(np.float32), self._stack(tensors)
        )
    return found

  def other_rope(self, shape: model_config.ModelConfig) -> rope.RopeConfig | None:
    """The rope that it was trained with, if a model of this shape has another one.

    Raises:
      UserError: its config.json is of a model of another shape.
    """
    own = config_of(pathlib.Path(self.config.where).parent, shape).rope
    return None if rope.alike(own, shape.rope, shape.head_dim) else own

  def _stack(self, tensors: list[str]):
    def read_block(index: weights.Index, dtype: np.dtype) -> np.ndarray:
      chosen = tensors[index[0]]
      parts = [self._tensors.read(name)[index[1:]].astype(dtype) for name in chosen]
      for name, part in zip(chosen, parts, strict=True):
        weights.check_finite(name, part)
      return np.stack(parts)

    return read_block

  def _check_settings(
    self, wanted: lora.Config | None, shape: model_config.ModelConfig
  ) -> None:
    """Raises UserError unless the run's adapters have these ranks and scales."""
    where = self._tensors.where
    settings = {
      (pair.rank, pair.scale) for one in self.pairs.values() for pair in one.values()
    }
    whole = all(len(one) == shape.num_layers for one in self.pairs.values())
    if len(settings) > 1 or not whole:
      raise errors.UserError(
        f"lora.init_from: {where} has adapters of different ranks or scales, or in "
        "some layers only. A run has the same in all layers: start from the merged "
        f"model, with model.init_from={where} and without lora.init_from"
      )
    ((rank, scale),) = settings
    targets = [name for name, path in lora.MATRICES.items() if path in self.pairs]
    same = wanted and (wanted.rank, set(wanted.targets)) == (rank, set(targets))
    if not same or not np.isclose(wanted.scale, scale, rtol=1e-6, atol=0):
      raise errors.UserError(
        f"lora.init_from: the adapters in {where} have other settings; set "
        f"lora.rank={rank}, lora.alpha={scale * rank:g} and "
        f"lora.targets={','.join(targets)}"
      )


def open_adapter(folder: pathlib.Path) -> Adapter:
  """Opens an adapter; its headers are read, no values.

  Raises:
    UserError: damaged, incomplete, or not supported.
  """
  config = peft_config.read(folder)
  if not (folder / FILE).is_file():
    pickled = sorted(path.name for path in folder.glob("adapter_model.*"))
    hint = f" (it has {escape.listed(pickled, 3)})" if pickled else ""
    raise errors.UserError(
      f"{folder}: is an adapter without {FILE}{hint}; save it with "
      "save_pretrained(..., safe_serialization=True)"
    )
  tensors = safetensors_files.SafetensorsFolder(folder, FILE)
  return Adapter(config, _pairs(tensors, config), tensors)


def config_of(
  folder: pathlib.Path, base: model_config.ModelConfig
) -> model_config.ModelConfig:
  """The shape of an adapter's model: its base's, with the rope of its own config.json.

  Raises:
    UserError: config.json is of a model of another shape.
  """
  path = folder / "config.json"
  if not path.is_file():
    return base
  own = model_config.from_hf(files.read_json(path, finite=False), str(path))
  here, there = (
    dataclasses.asdict(dataclasses.replace(one, rope=base.rope, window=base.window))
    for one in (own, base)
  )
  different = [key for key in here if here[key] != there[key]]
  if different:
    raise errors.UserError(
      f"{path} is not of the adapter's base: "
      f"{', '.join(f'{k} is {here[k]}, there {there[k]}' for k in different)}. Name "
      f"another base as {folder}@BASE, or remove the file if it is not the adapter's"
    )
  return own


def _pairs(
  tensors: safetensors_files.SafetensorsFolder, config: peft_config.AdapterConfig
) -> dict[str, dict[int, Pair]]:
  """Path → layer → A and B; UserError for other tensors, and for a half of a pair."""
  found: dict[tuple[str, int], dict[str, str]] = {}
  modules = {}
  for name in tensors.shapes:
    at = _place(name)
    if name.endswith(".bias"):
      raise errors.UserError(
        f"{tensors.where}: {escape.line(name)[:200]}: biases were trained, too. "
        f"{_REMEDY}"
      )
    if at is None:
      raise errors.UserError(
        f"{tensors.where}: {escape.line(name)[:200]} is no adapter of a linear layer "
        f"in a decoder layer, or not named as PEFT names it. {_REMEDY}"
      )
    path, layer, module, side = at
    found.setdefault((path, layer), {})[side] = name
    modules[path, layer] = module
  pairs: dict[str, dict[int, Pair]] = {}
  for (path, layer), sides in found.items():
    if len(sides) < 2:
      (name,) = sides.values()
      raise errors.UserError(
        f"{tensors.where}: {name} has no other half; the file is incomplete"
      )
    module = modules[path, layer]
    rank, scale = config.rank_of(module), config.scale_of(module)
    pairs.setdefault(path, {})[layer] = Pair(sides["a"], sides["b"], rank, scale)
  if not pairs:
    raise errors.UserError(f"{tensors.where}: {FILE} has no adapters")
  return pairs


def _place(name: str) -> tuple[str, int, str, str] | None:
  """Path, layer, module and side of a tensor's name; None if it has none."""
  for ending, side in _SIDES.items():
    module = name.removeprefix(peft_config.PREFIX).removesuffix(ending)
    if name != f"{peft_config.PREFIX}{module}{ending}":
      continue
    try:
      path, layer = names.path_of_hf(f"{module}.weight")
    except (errors.UserError, ValueError):
      return None
    is_matrix = path in lora.MATRICES.values() and layer is not None
    # Not "layers.01", which would be a second name of a layer.
    if is_matrix and names.hf_name(path, layer) == f"{module}.weight":
      return path, layer, module, side
  return None
