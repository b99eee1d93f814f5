"""The rope of a config.json, in the spelling of transformers v4, of v5, or both."""

from collections.abc import Mapping
from typing import Any

from skipalign_jax.model import hf_keys, rope
from skipalign_jax.runtime import errors, escape

_KEYS = {
  "rope_type",
  "rope_theta",
  "factor",
  "original_max_position_embeddings",
  "beta_fast",
  "beta_slow",
  "attention_factor",
  "low_freq_factor",
  "high_freq_factor",
}
_TYPES = ("default", "linear", "yarn", "llama3")
_ORIGINAL = "original_max_position_embeddings"
# The fp32 number below 1, which stands for an attention_factor of 1 in what we write.
# llama.cpp's converter writes one key for attention_factor and for YaRN's attn_factor,
# which is 1 by default and means something else; so a 1 there says nothing. Readers
# that multiply by this number get cos and sin to one unit in the last place of fp32.
_ONE = 1 - 2.0**-24


def read(hf: Mapping[str, Any], where: str, default_theta: float) -> rope.RopeConfig:
  """The rope of a config.json.

  Args:
    hf: its keys, the left-out ones filled in.
    where: the file, for messages.
    default_theta: base of the family when the file names none.

  Raises:
    UserError: the spellings disagree, a key is missing or not supported.
  """
  given = _one_spelling(hf, where, default_theta)
  if unknown := given.keys() - _KEYS:
    raise errors.UserError(
      f"{where}: the rope has {escape.listed(sorted(unknown))}, which are not supported"
      " and would be ignored; if transformers gives the same logits without them, "
      "remove them in a copy of the model's folder"
    )
  kind = given["rope_type"]
  _check_type(kind, where)
  original = _original_window(hf, given, where)
  return rope.RopeConfig(
    kind="none" if kind == "default" else kind,
    theta=hf_keys.number(given, "rope_theta"),
    factor=_factor(hf, given, original, where),
    original_window=original,
    # A 0 asks transformers for yarn's default.
    beta_fast=_number(given, "beta_fast", 0) or 32.0,
    beta_slow=_number(given, "beta_slow", 0) or 1.0,
    attention_factor=_attention_factor(given),
    low_freq_factor=_number(given, "low_freq_factor", 1),
    high_freq_factor=_number(given, "high_freq_factor", 4),
  )


def _check_type(kind: Any, where: str) -> None:
  if kind == "dynamic":
    raise errors.UserError(
      f"{where}: rope_type dynamic cannot be trained: its base depends on the longest "
      "position seen so far. Up to max_position_embeddings it changes nothing: remove "
      "it in a copy of the model's folder, and scale with rope.kind=ntk if you want to"
    )
  if kind not in _TYPES:
    raise errors.UserError(
      f"{where}: rope_type {escape.line(kind)[:60]} is not supported; supported: "
      f"{', '.join(_TYPES)}"
    )


def written_attention_factor(factor: float) -> float:
  """A yarn attention_factor as config.json gets it; `read` gives the factor back."""
  return _ONE if factor == 1 else factor


def _number(given: Mapping[str, Any], key: str, default: float) -> float:
  return hf_keys.number({key: default, **given}, key)


def _attention_factor(given: Mapping[str, Any]) -> float | None:
  if given.get("attention_factor") is None:
    return None
  factor = hf_keys.number(given, "attention_factor")
  return 1.0 if abs(factor - _ONE) < 2.0**-26 else factor


def _one_spelling(
  hf: Mapping[str, Any], where: str, default_theta: float
) -> dict[str, Any]:
  """What the file says, by rope_theta and rope_scaling or by rope_parameters."""
  theta = hf.get("rope_theta")
  base = default_theta if theta is None else theta
  old = _filled(hf.get("rope_scaling") or {}, base)
  new = hf.get("rope_parameters")
  if not new:
    return old
  new = _filled(new, base)
  # Without rope_scaling, rope_theta is the base of rope_parameters and no more.
  spelled = "rope_scaling" in hf and not (theta is None and hf["rope_scaling"] is None)
  if old != new if spelled else theta is not None and theta != new["rope_theta"]:
    raise errors.UserError(
      f"{where}: rope_theta/rope_scaling give {old} but rope_parameters give {new};"
      " make the two spellings agree or remove one"
    )
  return new


def _filled(raw: Mapping[str, Any], theta: float) -> dict[str, Any]:
  """A spelling with its defaults, without keys that change nothing."""
  given = {
    # A null factor asks for the ratio of the windows; other nulls for the default.
    key: value
    for key, value in raw.items()
    if value is not None or key == "factor"
  }
  if "type" in given:
    old_name = given.pop("type")
    given.setdefault("rope_type", old_name)
  # YaRN's first code noted so that the model was trained with it.
  given.pop("finetuned", None)
  if given.get("truncate") is True:
    del given["truncate"]
  if given.get("partial_rotary_factor") == 1:
    del given["partial_rotary_factor"]
  return {"rope_type": "default", "rope_theta": theta} | given


def _original_window(
  hf: Mapping[str, Any], given: Mapping[str, Any], where: str
) -> int:
  """Tokens before the extension; transformers takes the key at the top level first."""
  inside, outside = (
    None if one.get(_ORIGINAL) is None else hf_keys.whole(one, _ORIGINAL)
    for one in (given, hf)
  )
  window = hf_keys.whole(hf, "max_position_embeddings")
  if given["rope_type"] not in ("yarn", "llama3"):
    return inside or window
  if inside and outside and inside != outside:
    raise errors.UserError(
      f"{where}: {_ORIGINAL} is {outside}, but {inside} within the rope; make the two "
      "agree or remove one"
    )
  if given["rope_type"] == "llama3" and not (inside or outside):
    raise errors.UserError(f"{where}: rope_type llama3 needs {_ORIGINAL}")
  return next(one for one in (inside, outside, window) if one is not None)


def _factor(
  hf: Mapping[str, Any], given: Mapping[str, Any], original: int, where: str
) -> float:
  kind = given["rope_type"]
  if kind == "yarn" and "factor" in given and given["factor"] is None:
    return hf_keys.number(hf, "max_position_embeddings") / original
  if kind in ("linear", "yarn", "llama3") and given.get("factor") is None:
    raise errors.UserError(f"{where}: rope_type {kind} needs a factor")
  return 1.0 if given.get("factor") is None else hf_keys.number(given, "factor")
