"""One model reference everywhere: hub id, HF folder, .gguf file or workdir.

`open_model` reads configs and headers only; weights are read when they are used,
so that a 7B model opens at once and loads one parameter at a time.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax.hf import (
  adapters,
  chat_template,
  gguf,
  gguf_tokenizer,
  hub,
  locations,
  native,
  peft_adapter,
  peft_config,
  safetensors_files,
  stops,
  tokenizer_files,
  weights,
)
from skipalign_jax.model import model_config
from skipalign_jax.runtime import errors, escape, files, paths

if TYPE_CHECKING:
  import transformers

# Creates one parameter: (path, shape, dtype, read), where read(index) returns
# the block of the parameter at a tuple of slices, already as dtype.
Place = Callable[
  [str, tuple[int, ...], np.dtype, Callable[[weights.Index], np.ndarray]], jax.Array
]

# Files that tokenizer.json can be made from, and what else that needs.
_OTHER_TOKENIZERS = {
  "tokenizer.model": ", with the packages sentencepiece and protobuf installed",
  "merges.txt": "",  # and vocab.json
}


@dataclasses.dataclass(frozen=True)
class Model:
  """An opened model.

  Attributes:
    reference: what the user wrote.
    location: where it is.
    config: its shape.
    hf_config: its config.json, or the one HF would have; None from scratch.
    generation_config: its generation_config.json, None without one.
    weights: path -> lazy parameter, layers stacked.
  """

  reference: str
  location: locations.Location
  config: model_config.ModelConfig
  hf_config: dict[str, Any] | None
  generation_config: dict[str, Any] | None
  weights: dict[str, weights.Parameter]

  @property
  def kind(self) -> str:
    """ "hf", "gguf", "workdir" or "adapter"."""
    return self.location.kind

  @property
  def origin(self) -> str:
    """The reference, for records: models on the hub begin with `hub:`."""
    hub_id = self.location.hub_id
    return f"{hub.PREFIX}{hub_id}" if hub_id else self.reference

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """The ids that its files name as ends; see `stops.named`."""
    return stops.named(
      self.generation_config, self.hf_config, self.config.vocab_size, self.reference
    )


def open_model(reference: str) -> Model:
  """Opens a model without reading its weights.

  Raises:
    UserError: not found, not of a supported family, or weights that are incomplete.
  """
  return _open(reference, ())


def _open(reference: str, above: tuple[pathlib.Path, ...]) -> Model:
  """`above`: the folders whose adapters have this model as their base."""
  location = locations.locate(reference)
  if location.kind == "adapter":
    return _open_adapter(reference, location, above)
  generation = None
  match location.kind:
    case "gguf":
      source = gguf.GGUFFile(location.path)
      config, hf_config = source.config, source.hf_config
      parameters = weights.stacked(config, source)
    case "hf":
      if not (location.path / "config.json").is_file():
        _check_download(location)
      hf_config = files.read_json(location.path / "config.json", finite=False)
      if hf_config.get("quantization_config"):
        raise errors.UserError(
          f"{location.path}: config.json has a quantization_config; quantised HF "
          "checkpoints are not supported, take the unquantised model"
        )
      _check_download(location)
      config = model_config.from_hf(hf_config, str(location.path / "config.json"))
      folder = safetensors_files.SafetensorsFolder(location.path)
      source = weights.with_usual_names(folder, config.tie_embeddings)
      parameters = weights.stacked(config, source)
      if (location.path / "generation_config.json").is_file():
        generation = files.read_json(
          location.path / "generation_config.json", finite=False
        )
    case "workdir":
      described = native.read_config(location.path)
      config, hf_config = described.model_config, described.hf_config
      generation = described.generation_config
      parameters = _open_checkpoint(location, described, above)
  stops.named(generation, hf_config, config.vocab_size, reference)  # refuses now
  return Model(reference, location, config, hf_config, generation, parameters)


def _check_download(location: locations.Location) -> None:
  """Raises UserError for a repository of the hub without weights that are read."""
  if location.hub_id and not safetensors_files.has_weights(location.path):
    name = location.hub_id.partition("@")[0]
    raise errors.UserError(
      f"{location.hub_id}: the hub, or its cache where there is no network, has no "
      "safetensors of it. If it has .gguf files, download one (hf download "
      f"{name} FILE.gguf --local-dir=DIR) and name it; if it has .bin files, load them "
      "with transformers and save them with save_pretrained(DIR)"
    )


def with_tokenizer(
  model: Model, tokenizer: transformers.PreTrainedTokenizerFast
) -> Model:
  """A model that another tokenizer than its own is used with.

  Of the ids that its files name as ends, it keeps those that are the same token in both
  tokenizers; all of them if it has no tokenizer of its own.
  """
  try:
    own = load_tokenizer(model.reference)
  except errors.UserError:
    return model

  def same(one: int) -> bool:
    token = own.convert_ids_to_tokens(one)
    return token is not None and tokenizer.convert_ids_to_tokens(one) == token

  return dataclasses.replace(
    model,
    hf_config=stops.restricted(model.hf_config, same),
    generation_config=stops.restricted(model.generation_config, same),
  )


class _CircularBaseError(errors.UserError):
  """Adapters whose base needs these adapters."""


def _open_checkpoint(
  location: locations.Location,
  described: native.Description,
  above: tuple[pathlib.Path, ...],
) -> dict[str, weights.Parameter]:
  """A checkpoint's weights; with adapters, those of its base plus their product."""
  shape, trained = described.model_config, adapters.config_of(described)
  if trained is None:
    return native.open_parameters(location.path, location.step, shape)
  if described.base is None:
    base = adapters.random_base(shape, described.config["seed"])
  else:
    base = _open_base(described.base, location.path, above).weights
    adapters.check_base(location.path, described, base)
  return adapters.open_merged(location.path, location.step, shape, trained, base)


def _open_adapter(
  reference: str, location: locations.Location, above: tuple[pathlib.Path, ...]
) -> Model:
  """An adapter on its base."""
  adapter = peft_adapter.open_adapter(location.path)
  base = _open_base(_base_of(location), location.path, above)
  adapter.check_shapes(base.config)
  return dataclasses.replace(
    base,
    reference=reference,
    location=location,
    config=peft_adapter.config_of(location.path, base.config),
    weights=adapter.merged(base.weights),
  )


def open_adapter(reference: str) -> peft_adapter.Adapter:
  """Opens an adapter in PEFT's format without its base.

  Raises:
    UserError: not found, damaged, or not supported.
  """
  location = locations.locate(reference)
  if location.kind != "adapter":
    raise errors.UserError(
      f"lora.init_from={reference}: is not an adapter in PEFT's format (a folder with "
      "adapter_config.json). Export one from a run with convert export --format=peft"
    )
  return peft_adapter.open_adapter(location.path)


def _base_of(location: locations.Location) -> str:
  """The reference of the base of an adapter; UserError if nothing names it."""
  if name := location.base or peft_config.read(location.path).base:
    return name
  raise errors.UserError(
    f"{location.path}: adapter_config.json names no base; give one as "
    f"{location.path}@BASE"
  )


def _open_base(
  name: str, folder: pathlib.Path, above: tuple[pathlib.Path, ...]
) -> Model:
  """The model below the adapters in a folder.

  Args:
    name: reference of the base.
    folder: has the adapters.
    above: the folders whose adapters have them as their base.
  """
  here = folder.resolve()
  if here in above:
    chain = " -> ".join(map(str, (*above[above.index(here) :], here)))
    raise _CircularBaseError(
      f"{folder} has adapters whose base is read from their own folder: "
      f"{chain}. Was a folder moved or renamed? Put the base back where config.json "
      "(key base) or adapter_config.json says; relative paths start at the current "
      "folder."
    )
  try:
    return _open(name, (*above, here))
  except _CircularBaseError:
    raise
  except errors.UserError as error:
    remedy = ""
    if peft_config.is_adapter(folder):
      remedy = f". To take another base, name it as {folder}@BASE"
    raise errors.UserError(
      f"{folder} has adapters of {escape.line(name)}, which cannot be read (relative "
      f"paths start at the current folder): {error}{remedy}"
    ) from error


def load_params(
  model: Model, dtype: str | np.dtype = "float32", place: Place | None = None
) -> dict[str, Any]:
  """Builds the parameter tree, one stacked parameter at a time.

  Args:
    model: an opened model.
    dtype: of the parameters.
    place: creates each device array; by default whole on the default device.

  Returns:
    Nested dict of arrays, as `decoder` takes it.
  """
  return build_params(model.weights, dtype, place or _place_whole)


def build_params(
  parameters: dict[str, weights.Parameter], dtype: str | np.dtype, place: Place
) -> dict[str, Any]:
  """`load_params` of parameters that are not those of an opened model."""
  tree: dict[str, Any] = {}
  for path, parameter in parameters.items():

    def read(index: weights.Index, parameter=parameter) -> np.ndarray:
      return parameter.read(index, jnp.dtype(dtype))

    *folders, leaf = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = place(path, parameter.shape, jnp.dtype(dtype), read)
  return tree


def _place_whole(path, shape, dtype, read) -> jax.Array:
  del path, shape, dtype
  return jnp.asarray(read(()))


def load_tokenizer(reference: str) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer that belongs to a reference.

  Raises:
    UserError: the reference has no tokenizer, or one that cannot be used or needs
      foreign code.
  """
  try:
    tokenizer = _tokenizer(reference)
    if not isinstance(tokenizer.model_max_length, int | float):
      raise TypeError(f"model_max_length is {tokenizer.model_max_length!r}")
    tokenizer_files.check_templates(tokenizer.chat_template)
    tokenizer("A word, 1 number.\n")
  except (errors.UserError, KeyboardInterrupt, SystemExit):
    raise
  # Damaged files cause any error of the library; its panics are not Exceptions.
  except BaseException as error:
    problem = escape.line(error)[:200]
    raise errors.UserError(f"{reference}: unreadable tokenizer ({problem})") from error
  tokenizer_files.check_template(len(str(tokenizer.chat_template or "")), reference)
  chat_template.try_out(tokenizer, reference)
  return tokenizer


def _tokenizer(reference: str) -> transformers.PreTrainedTokenizerFast:
  import transformers

  folder = None if paths.problem(reference) else paths.given(reference, reference)
  if not (folder and os.path.isfile(folder / "tokenizer.json")):
    # Otherwise the reference is only a tokenizer.
    location = locations.locate(reference)
    if location.kind == "gguf":
      return gguf_tokenizer.build(
        gguf.read_metadata(location.path), where=str(location.path)
      )
    folder = location.path
    if location.kind == "adapter" and not (folder / "tokenizer.json").is_file():
      base = _open_base(_base_of(location), folder, ())  # refuses a circle
      return _tokenizer(base.reference)
    if location.kind == "workdir":
      folder = folder / native.TOKENIZER
  if not (folder / "tokenizer.json").is_file():
    for name, needs in _OTHER_TOKENIZERS.items():
      if (folder / name).is_file():
        raise errors.UserError(
          f"{folder}: has a {name} but no tokenizer.json. Make one{needs}: "
          f"transformers.AutoTokenizer.from_pretrained({str(folder)!r})"
          f".save_pretrained({str(folder)!r})"
        )
    raise errors.UserError(
      f"{folder}: has no tokenizer.json; name a HF folder or .gguf file that has a "
      "tokenizer"
    )
  tokenizer_files.check(folder)
  # Not AutoTokenizer: for some class names, LlamaTokenizer among them,
  # transformers 5 rebuilds the pipeline from the vocabulary and then splits
  # leading spaces in another way than tokenizer.json does.
  return transformers.PreTrainedTokenizerFast.from_pretrained(
    str(folder), local_files_only=True
  )


def check_vocabulary(
  tokenizer: transformers.PreTrainedTokenizerFast, config: model_config.ModelConfig
) -> None:
  """UserError when the tokenizer can emit an id without an embedding row."""
  highest = max(tokenizer.get_vocab().values(), default=-1)
  if highest >= config.vocab_size:
    raise errors.UserError(
      f"the tokenizer's highest id is {highest} but the model has {config.vocab_size} "
      "embedding rows (model.vocab_size); use the tokenizer of this model"
    )
