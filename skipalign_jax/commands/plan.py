"""Plans a config on each topology."""

import dataclasses
import json
import math
import os

import jax
import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.data import prepare, sources, tokenizer
from skipalign_jax.hf import hub, reference
from skipalign_jax.model import decoder, known_models, model_config, sharding
from skipalign_jax.planning import (
  compiler,
  estimate,
  executed_flops,
  plan_json,
  plan_table,
  programs,
  search,
)
from skipalign_jax.runtime import errors, files, hardware, paths, terminal
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import resolve

TULU_SAMPLES = 326_154  # of allenai/tulu-v2-sft-mixture, by its dataset card
# Keys of config.data with which a chat can be more than one sample.
_SEVERAL = (("overlong", "split"), ("rewritten", "each"))


def run(
  config: ml_collections.ConfigDict,
  flags: dict[str, str | int],
  console: terminal.Console,
) -> int:
  """Prints the plans and, with --out, writes plan.json; returns the exit status.

  Args and errors are those of `records`.
  """
  jax.config.update("jax_platforms", "cpu")  # a plan never uses an accelerator
  planned = records(config, flags, console)
  plan_table.show(planned, console)
  if flags["out"]:
    out = f"--out={flags['out']}"
    path = paths.output(flags["out"], out) / "plan.json"
    with errors.of_storage(f"{out} cannot be written: "):
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_text(path, json.dumps(planned, indent=1) + "\n")
    console.print(f"written to {path}")
  return 0


def records(
  config: ml_collections.ConfigDict,
  flags: dict[str, str | int],
  console: terminal.Console,
) -> list[plan_json.Record]:
  """Plans a config on each topology.

  Args:
    config: the whole config.
    flags: the command's own flags, by name; see `skipalign_jax.plan.check`.
    console: shows what is being compiled.

  Returns:
    One record per topology, with the keys of `plan_json.topology`.

  Raises:
    UserError: keys that contradict each other or do not fit a topology.
  """
  topologies = hardware.parse(flags["topology"])
  position_recipe = resolve.check(config)
  shape = model_shape(config)
  jobs = []
  for topology in topologies:
    platform = topology.hardware.platform
    recipe = recipe_lib.from_config(config, shape, position_recipe, platform)
    jobs.append(_job(config, flags, recipe, topology))
  steps, note = run_steps(config, flags["samples"])
  planned = []
  missing = [t.name for t in topologies if not compiler.available(t.hardware)]
  if missing:
    console.print(
      f"{', '.join(missing)}: the compiler is not installed, so these plans are "
      f"arithmetic only; to compile: {compiler.INSTALL}"
    )
  for topology, job in zip(topologies, jobs, strict=True):
    planned.append(_plan(job, topology, bool(flags["search"]), steps, note, console))
  return planned


def model_shape(config: ml_collections.ConfigDict) -> model_config.ModelConfig:
  """The model of a config: a known name, a reference, or the config's own fields.

  Raises:
    UserError: the name is not known and cannot be read as a reference.
  """
  name, vocab_size = config.model.init_from, 0
  base = None
  if not os.path.exists(name):
    base = known_models.KNOWN.get(name.removeprefix(hub.PREFIX))
  if base is None and name:
    try:
      base = reference.open_model(name).config
    except errors.UserError as error:
      known = ", ".join(known_models.KNOWN)
      raise errors.UserError(f"{error}\nknown without their files: {known}") from error
  if base is None:
    vocab_size = config.model.vocab_size or len(tokenizer.resolve(config))
  return resolve.model_from(config, base, vocab_size)


def _job(config, flags, recipe, topology) -> estimate.Job:
  stand_ins = jax.devices()[:1] * topology.devices
  mesh = sharding.make_mesh(dict(config.mesh), stand_ins)
  rows, length, kind = config.batch_size, config.data.seq_len, "train"
  if flags["job"] == "train":
    resolve.check_mesh(config, recipe.model, mesh.shape)
  else:
    resolve.check_heads(recipe.model, mesh.shape)
    rows, length, kind = sharding.row_shards(mesh), flags["length"], "decode"
  return estimate.Job(
    kind=kind,
    recipe=recipe,
    optim=tuple(config.optim.items()),
    mesh=tuple(mesh.shape.items()),
    rows=rows,
    length=length,
    steps=config.steps or 1000,
    part=flags["part"],
  )


def _plan(job, topology, searching, steps, note, console) -> plan_json.Record:
  kinds = ("train",) if job.kind == "train" else ("prefill", "decode")
  jobs = [_of_kind(job, kind) for kind in kinds]
  show = lambda text: console.print(text, style="dim")
  compiles = compiler.available(topology.hardware)
  searched, parts = None, []
  with compiler.Compiler(topology) as build:
    for one in jobs:
      measured = None
      if compiles:
        show(f"compiling {one.kind} for {topology.name}")
        measured = build.measure(one)
        show(f"  {measured.refused or 'done'} ({measured.seconds:.0f} s)")
      executed = measured.executed if measured else 0
      if not executed:
        # Kernels of an accelerator cannot be traced without its libraries.
        portable = one.with_recipe(attention=decoder.BLOCKWISE)
        traced = programs.trace(portable, sharding.abstract_mesh(one.axes))
        executed = executed_flops.executed(traced.jaxpr)
      parts.append(plan_json.program(one, topology, measured, executed))
    advice = [f"the compiler reports: {p['refused']}" for p in parts if p["refused"]]
    hopeless = _too_large(job, topology)
    advice += hopeless
    if searching and not hopeless:
      tries = build if compiles else search.Arithmetic(topology)
      searched, more = _search(tries, jobs, parts, show)
      advice += more
  advice += plan_json.allocator_advice(parts, topology)
  duration = None
  if job.kind == "train":
    seconds = parts[0]["estimate"]["seconds"]
    hours = [steps * s / 3600 for s in seconds] if steps else None
    duration = {"steps": steps, "hours": hours, "note": note}
    if note:
      advice.append(note)
  return plan_json.topology(job, topology, parts, advice, searched, duration)


def _of_kind(job, kind) -> estimate.Job:
  return dataclasses.replace(job, kind=kind)


def _too_large(job, topology) -> list[str]:
  """Advice if no setting can help: the state alone needs more memory."""
  kind = topology.hardware
  free = kind.memory - sum(kind.reserve.values())
  if job.kind != "train":
    return []
  if (kept := estimate.least_bytes(job)) <= free * topology.devices:
    return []
  return [
    f"weights, optimizer state and gradients alone need {-(-kept // free)} such "
    "devices; no setting makes them smaller"
  ]


def _search(build, jobs, parts, show) -> tuple[plan_json.Record, list[str]]:
  """The largest microbatch, and what to change if the config does not fit."""
  advice, tried, rows = [], [], None
  how = "by arithmetic" if isinstance(build, search.Arithmetic) else "compiled"
  for job, part in zip(jobs, parts, strict=True):
    if job.kind == "train":
      rows, tried = search.largest_microbatch(build, job, show)
    if not part["fits"]:
      found, more = search.remedy(build, job, show)
      tried += [t for t in more if t not in tried]
      if found:
        change = " ".join(f"--config.{k}={v}" for k, v in found.settings.items())
        advice.append(
          f"{part['program']} does not fit; it does with {change} "
          f"({found.needed / hardware.GIB:.1f} GiB with the reserve, {how})"
        )
      else:
        why = "no setting makes it smaller"
        if more:
          why = f"none of {len(more)} other settings does"
        advice.append(
          f"{part['program']} does not fit, and {why}; take more devices or larger ones"
        )
  searched = {
    "largest_rows_per_device": rows,
    "tried": [vars(t) for t in tried],
  }
  return searched, advice


def run_steps(
  config: ml_collections.ConfigDict, samples: int
) -> tuple[int | None, str]:
  """Steps of the whole run, and a note about that number.

  Args:
    config: the whole config.
    samples: the value of --samples; 0 if it is not given.

  Returns:
    Steps, None if the number of samples is not known; and a note or "".
  """
  if config.steps:
    if samples:
      raise errors.UserError(
        f"--samples={samples} is for runs of epochs, and this one has steps="
        f"{config.steps}; leave it out, or give --config.steps=None --config.epochs=N"
      )
    return config.steps, ""
  notes = []
  if not samples:
    samples, known = _local_samples(config)
    notes.append(known)
  if not samples:
    reason = "".join(f"{note}; " for note in notes if note)
    return None, (
      f"how long the run takes depends on the number of samples: {reason}add "
      f"--samples=N (allenai/tulu-v2-sft-mixture has {TULU_SAMPLES:,})"
    )
  if config.data.packing:
    notes.append(
      "packing puts several samples into a row, so the run takes fewer steps"
    )
  steps = math.ceil(config.epochs * samples / config.batch_size)
  return steps, "; ".join(notes)


def _local_samples(config) -> tuple[int, str]:
  """Training samples of an epoch in files of this machine, and a note about them.

  0 if some are elsewhere, or are texts, whose pieces only a tokenizer can count. Chats
  that a run would leave out or cut into several are counted as one.
  """
  try:
    found = sources.parse(config.data.train)
    if any(source.name.startswith(hub.PREFIX) for source in found):
      return 0, ""
    counts = [sum(1 for _ in source.records()) for source in found]
    texts = [source.name for source in found if _has_text(source, config)]
  except errors.UserError as error:
    return 0, errors.first_line(error)
  if texts:
    length = config_lib.row_length(config.data)
    return 0, f"{texts[0]} has texts, which are cut into pieces of {length:,} tokens"
  different = sum(counts)
  share = 1 - config_lib.held_out(config.data, different) / max(1, different)
  repeated = sum(n * source.weight for n, source in zip(counts, found, strict=True))
  note = f"data.train has {different:,} records"
  several = [
    f"data.{key}={value}" for key, value in _SEVERAL if config.data[key] == value
  ]
  if several:
    note += f", and with {' and '.join(several)} some become several samples"
  return round(repeated * share), note


def _has_text(source: sources.Source, config: ml_collections.ConfigDict) -> bool:
  """Whether the first record of one of its files is a text and not a chat."""
  ignored = prepare.ignored_keys(config.data)
  first = (next(records, None) for _, records in source.parts())
  return any(prepare.is_text(one[1], ignored) for one in first if one)
