"""What a run reports before its first step."""

import jax
import transformers

from skipalign_jax import config as config_lib
from skipalign_jax.hf import reference
from skipalign_jax.method import distillation, long_short, positions, preference
from skipalign_jax.model import lora, model_config, quantized
from skipalign_jax.runtime import terminal
from skipalign_jax.training import setup as setup_lib
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import trace, unread


def describe(setup: setup_lib.Setup, start: int) -> str:
  """What is about to be trained after step `start`, in lines of `name  value`."""
  config, recipe, data, mesh = setup.config, setup.recipe, setup.data, setup.mesh
  shape = recipe.model
  state, _ = state_lib.shardings(mesh, setup.optimizer, shape, recipe.adapters)
  trained, scope = sum(x.size for x in jax.tree.leaves(state.params)), []
  if recipe.adapters:
    kinds = lora.describe(recipe.adapters)
    scope = [f"adapters   {trained / 1e6:,.1f}M parameters: {kinds}"]
  strategy = describe_positions(recipe.positions)
  p = recipe.positions
  moves_turn = p.strategy in ("endprompt", "logo") and p.terminal == "turn"
  needs_turns = p.strategy == "skip_outer" or moves_turn
  if needs_turns and not data.several_turns and config.data.packing_mask:
    strategy += (
      "\n           NOTE: no sample has a second instruction, so nothing will skip"
    )
  kind = jax.devices()[0].device_kind
  hosts = f" of {n} processes" if (n := jax.process_count()) > 1 else ""
  axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  return "\n".join(
    [
      f"model      {shape.num_params() / 1e6:,.1f}M parameters, {shape.num_layers} "
      f"layers, from {config.model.init_from or 'scratch'}",
      *scope,
      f"rope       {describe_rope(config.rope.kind, shape)}",
      *describe_reach(config, shape.window),
      f"positions  {strategy}",
      *describe_long_short(recipe.long_short),
      *describe_distillation(recipe.distill, recipe.positions),
      *describe_preference(recipe.loss),
      *(f"data       {line}" for line in data.report.splitlines()),
      *describe_template(config, setup.tokenizer),
      *(f"config     NOTE: {note}" for note in unread.keys(config)),
      f"batch      {config.batch_size} rows x {config.data.seq_len} tokens"
      f"{', packed' if config.data.packing else ''}"
      f"{'' if config.data.packing_mask else ' without a mask'}, "
      f"microbatches {config.grad_accum}, steps {data.steps}",
      f"memory     {terminal.size(quantized.num_bytes(state))} weights and optimizer "
      f"state ({config.optim.kind}), "
      f"{terminal.size(4 * trained)} gradients, over {mesh.devices.size} x {kind}"
      f"{hosts} ({axes})",
      *describe_best(config, data.steps, bool(data.eval_batches)),
      *describe_profile(config.profile, start),
      f"workdir    {setup.folder}" + describe_start(start, data.steps),
    ]
  )


def describe_start(start: int, steps: int) -> str:
  """What is done in the workdir of a run that has trained `start` steps."""
  if not start:
    return ": a new run"
  if start == steps:
    return f": complete, all {steps:,} steps are trained"
  return f": continuing after step {start}"


def describe_best(
  config: config_lib.ConfigDict, steps: int, held_out: bool
) -> list[str]:
  """A note where checkpoint.keep_best knows no loss of some checkpoints; else empty.

  Args:
    config: of the run.
    steps: of the run.
    held_out: whether there are held-out samples.
  """
  saved, measured = config.checkpoint.every, config.eval.every
  chooses = config.checkpoint.keep_best and held_out and 0 < saved < steps
  if not chooses or (measured and saved % measured == 0):
    return []
  return [
    f"saved      NOTE: checkpoint.every={saved} is no multiple of eval.every="
    f"{measured}: checkpoint.keep_best chooses only among steps that have both"
  ]


def describe_profile(text: str, start: int) -> list[str]:
  """A note where all steps of `profile` were trained before this start; else empty."""
  traced = trace.parse(text)
  if not traced or traced[-1] > start:
    return []
  return [
    f"profile    NOTE: no trace is written, because the steps of profile={text} are "
    f"trained; this start continues after step {start}"
  ]


def describe_rope(kind: str, shape: model_config.ModelConfig) -> str:
  """The rope of a run with rope.kind=`kind`, and how far it is scaled."""
  text = f"{shape.rope.kind}, theta {shape.rope.theta:g}"
  if shape.rope.factor != 1:
    return f"{text}, {shape.rope.factor:.3g}x to {shape.window:,} positions"
  if kind in ("model", "none"):
    return text
  return f"{text}; nothing is scaled: the model's window has {shape.window:,} positions"


def describe_reach(config: config_lib.ConfigDict, window: int) -> list[str]:
  """A note where positions of the run are beyond the window of its model; else empty.

  Args:
    config: of the run. A model from scratch has seen no positions, so it has no note.
    window: of the model, with the scaling of the run.
  """
  p, seq_len = config.positions, config.data.seq_len
  key, reach = "positions.max_position", p.max_position
  what = f"{key}={reach:,}"
  if p.strategy == "contiguous" and not config.distill.weight:
    key, reach, what = "data.seq_len", seq_len, f"data.seq_len={seq_len:,}"
  elif p.strategy == "contiguous" and config.distill.reach == "sample":
    key, reach = "data.seq_len", min(reach, 2 * seq_len)
    what = f"data.seq_len={seq_len:,} with jumps of distill.weight, {reach:,},"
  if reach <= window or not config.model.init_from:
    return []
  return [
    f"           NOTE: {what} is beyond the model's window of {window:,} "
    f"positions; scale its rope (rope.kind=ntk, rope.target_length) or lower {key}"
  ]


def describe_positions(p: positions.PositionConfig) -> str:
  """The strategy with its parameters."""
  if p.strategy == "contiguous":
    return p.strategy
  text = f"{p.strategy} up to {p.max_position:,}"
  if p.strategy in positions.DO_SKIP:
    text += f", p={p.skip_prob} per {p.prob_per}, {p.gaps} gaps"
  elif p.strategy == "pose":
    text += f", {p.chunks} chunks"
  elif p.strategy == "endprompt":
    place = {"end": "to the end", "random": "by a random distance"}[p.terminal_at]
    part = "cue" if p.terminal == "cue" else f"last {p.terminal}"
    text += f", the {part} moves {place}"
  elif p.strategy == "logo":
    text += f", {p.chunks} chunks spread before the last {p.terminal}"
  if p.skip_below:
    text += f", samples of {p.skip_below:,} tokens or more stay contiguous"
  if p.limits:
    text += f", limits {', '.join(f'{limit:,}' for limit in p.limits)} over the run"
  return text + ("" if p.resample == "never" else ", drawn again each epoch")


def describe_template(
  config: config_lib.ConfigDict, used: transformers.PreTrainedTokenizerFast
) -> list[str]:
  """A note on a model's own chat template that another one replaces; else empty.

  Args:
    config: of the run.
    used: its tokenizer, with the template of the run.
  """
  source = config.data.tokenizer or config.model.init_from
  if config.data.template == "model" or source == "bytes":
    return []
  own = reference.load_tokenizer(source).chat_template
  if own in (None, used.chat_template):
    return []
  return [
    f"data       NOTE: data.template={config.data.template} replaces the chat template "
    f"of {source}; a model that was trained with its own keeps what it learned with "
    "data.template=model"
  ]


def describe_distillation(
  distill: distillation.DistillConfig, p: positions.PositionConfig
) -> list[str]:
  """Lines on self-distillation; empty without it."""
  if not distill.weight:
    return []
  notes = []
  view = "the positions of the strategy learn from contiguous ones"
  if distill.view == "jump":
    reach = {"sample": "the length of the sample", "limit": "max_position"}
    view = f"a jump before a random {distill.split}, up to {reach[distill.reach]}"
    if not distillation.leaves_room(p):
      notes.append(
        f"           NOTE: positions.strategy={p.strategy} moves the end of a sample "
        "to max_position, so that no jump has room and the sample learns nothing from "
        "it; distill.view=strategy compares with contiguous positions"
      )
  return [f"distill    weight {distill.weight:g}: {view}", *notes]


def describe_preference(loss: preference.PreferenceConfig) -> list[str]:
  """A line on the loss of preference pairs; empty without them."""
  if not loss.has_pairs:
    return []
  line = f"loss       {loss.kind}, beta {loss.beta:g}"
  if loss.kind == "simpo":
    return [f"{line}, margin {loss.margin:g} per token"]
  where = {"strategy": "the positions of the run", "contiguous": "0, 1, 2 …"}
  return [f"{line}; the start is the reference, at {where[loss.reference]}"]


def describe_long_short(regulariser: long_short.LongShortConfig) -> list[str]:
  """Lines on the weight of the regulariser; empty without one."""
  if not regulariser.alpha:
    return []
  lines = [f"long-short alpha {regulariser.alpha:g}"]
  if regulariser.alpha >= long_short.HARMFUL_ALPHA:
    lines.append(
      f"           NOTE: from alpha {long_short.HARMFUL_ALPHA:g} on, the paper reports "
      "worse long-context scores"
    )
  return lines
