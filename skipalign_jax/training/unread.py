"""Keys of a config that were changed and have no effect with the other keys.

These are no contradictions, which `resolve` refuses: a baseline keeps the keys of the
recipe that it is compared with.
"""

import dataclasses

import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions

_SKIPS = tuple(name for name in positions.DO_SKIP if name != "contiguous")
# Fields of PositionConfig that only some strategies read → these strategies.
_READ_BY = {
  **dict.fromkeys(("skip_prob", "prob_per", "gaps"), _SKIPS),
  "chunks": ("pose", "logo"),
  "terminal": ("endprompt", "logo"),
  "terminal_at": ("endprompt",),
  "cue": ("endprompt",),
  "cue_weight": ("endprompt",),
}


def of_positions(recipe: positions.PositionConfig) -> list[str]:
  """Fields that were changed from the default of their key and have no effect."""
  strategy = recipe.strategy
  nothing = {  # what this strategy does not read besides `_READ_BY`
    "contiguous": ("resample", "skip_below", "schedule"),
    "endprompt": ("resample",) if recipe.terminal_at == "end" else (),  # draws nothing
  }.get(strategy, ())
  if recipe.terminal != "cue":
    nothing += ("cue", "cue_weight")
  return [
    field.name
    for field in dataclasses.fields(recipe)
    if getattr(recipe, field.name) != config_lib.KEYS[f"positions.{field.name}"].default
    and (field.name in nothing or strategy not in _READ_BY.get(field.name, (strategy,)))
  ]


def keys(config: ml_collections.ConfigDict) -> list[str]:
  """A line for each key that was changed and has no effect with the others."""
  p, distill = config.positions, config.distill
  changed = lambda section, *names: [
    f"{section}.{name}"
    for name in names
    if config[section][name] != config_lib.KEYS[f"{section}.{name}"].default
  ]
  unread_by_strategy = of_positions(positions.PositionConfig(**p))
  if distill.weight and "schedule" in unread_by_strategy:
    unread_by_strategy.remove("schedule")  # jumps stay below its limits
  found = {
    f"with positions.strategy={p.strategy}": [
      f"positions.{name}" for name in unread_by_strategy
    ]
  }
  jumps_before_blocks = distill.weight and distill.view == "jump"
  if p.strategy not in _SKIPS and not (
    jumps_before_blocks and distill.split == "block"
  ):
    found[f"with positions.strategy={p.strategy}"] += changed("data", "text_blocks")
  if not distill.weight:
    names = ("view", "split", "reach", "places")
    found["with distill.weight=0"] = changed("distill", *names)
  elif distill.view == "strategy":
    found["with distill.view=strategy"] = changed("distill", "split", "reach")
  if not config.long_short.alpha:
    names = ("stop_gradient", "min_context")
    found["with long_short.alpha=0"] = changed("long_short", *names)
  if not config.log.to:
    found["without log.to"] = changed("log", "project")
  if config.rope.kind == "none":
    found["with rope.kind=none"] = changed("rope", "target_length")
  return [
    f"{key} has no effect {where}" for where, keys in found.items() for key in keys
  ]
