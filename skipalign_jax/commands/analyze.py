"""What a run trains, measured, printed and drawn."""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.analysis import dialogues, measure, pictures, reach, training
from skipalign_jax.analysis import distances as distances_lib
from skipalign_jax.data import prepare, sources
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import positions
from skipalign_jax.runtime import (
  compile_cache,
  errors,
  extras,
  files,
  json_limits,
  paths,
  plotting,
  storage,
  terminal,
)
from skipalign_jax.training import preview, resolve, unread

STRATEGIES = (
  "contiguous",
  "skip_outer",
  "skip_outer/uniform",
  "skip_inner",
  "skip_all",
)
DIAGRAM = ("contiguous", "skip_outer", "skip_inner", "skip_all")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of a measurement; "" and 0 stand for its own defaults."""

  strategies: str
  samples: int
  draws: int

  def recipes(
    self, base: positions.PositionConfig, usual: Sequence[str]
  ) -> dict[str, positions.PositionConfig]:
    """The strategies of the flag; by default `usual`, and the config's own.

    A name without gaps means those of the config in the flag, and sequential ones in
    `usual`.
    """
    if self.strategies:
      return measure.recipes(base, self.strategies)
    own = base.strategy
    if "gaps" not in unread.of_positions(base) and base.gaps != "sequential":
      own += f"/{base.gaps}"
    names = ",".join(dict.fromkeys([*usual, own]))
    return measure.recipes(dataclasses.replace(base, gaps="sequential"), names)


def draw_measurement(
  what: str, config: ml_collections.ConfigDict, flags: Mapping[str, Any]
) -> None:
  """Measures what a config trains; writes WHAT.json and WHAT.png.

  Args:
    what: one of `MEASUREMENTS`.
    config: the whole config.
    flags: strategies, samples, draws and out, by name.

  Raises:
    UserError: config, data or flags cannot be used, or `out` cannot be written.
  """
  compile_cache.enable()
  console = terminal.Console()
  options = Options(flags["strategies"], flags["samples"], flags["draws"])
  _write(MEASUREMENTS[what](config, options, console), flags["out"], console)


def draw_training(workdirs: Sequence[str], out: str) -> None:
  """Writes losses and evaluations of runs to training.json and training.png.

  Raises:
    UserError: a workdir has no metrics, or `out` cannot be written.
  """
  console = terminal.Console()
  _write(training.read(paths.different(workdirs, console.print)), out, console)


def redraw_all(names: Sequence[str]) -> None:
  """Draws the pictures of JSON files again; see `redraw`.

  Raises:
    UserError: as `redraw`, or no file is named.
  """
  if not names:
    raise errors.UserError("draw needs JSON files that `analyze` wrote")
  extras.need("matplotlib", "analyze draw")
  for name in names:
    terminal.Console().print(f"written: {redraw(paths.given(name, name))}")


def redraw(path: pathlib.Path) -> pathlib.Path:
  """Draws the picture of a JSON that `analyze` wrote, next to it.

  Raises:
    UserError: the file cannot be read, or is not such a JSON.
  """
  try:
    record = files.read_json(path, json_limits.MAX_RESULT_VALUES)
    return pictures.draw(record, path.with_suffix(".png"))
  except errors.UserError as error:
    raise errors.UserError(f"{path} cannot be drawn: {error}") from error
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be drawn: {storage.explain(error)}"
    ) from error
  except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
    raise errors.UserError(
      f"{path} cannot be drawn: it is damaged ({error!r}); measure again"
    ) from error


def _write(record: Record, out: str, console: terminal.Console) -> None:
  folder = paths.output(out, f"--out={out}")
  path = folder / f"{record['kind']}.json"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, _text(record))
  except OSError as error:
    raise errors.UserError(
      f"--out={out} cannot be written: {storage.explain(error)}"
    ) from error
  picture = ""
  if plotting.possible(console, path.with_suffix(".png")):
    picture = f", {redraw(path)}"
  console.print(f"written: {path}{picture}")


def _text(record: Record) -> str:
  """JSON with one line per list; histograms would be columns of numbers otherwise."""
  text = json.dumps(record, indent=1, ensure_ascii=False)
  flat = lambda match: " ".join(match[0].split())
  return re.sub(r"\[[^\[\]{}]*\]", flat, text) + "\n"


def _sources(
  config: ml_collections.ConfigDict, console: terminal.Console
) -> list[prepare.Prepared]:
  if config.data.text_window:
    raise errors.UserError(
      "analyze counts whole samples, and data.text_window crops them; set it to 0"
    )
  if config_lib.has_pairs(config):
    raise errors.UserError(
      f"analyze counts chats, and loss.kind={config.loss.kind} learns from pairs; set "
      "loss.kind=sft to count the dialogues with the chosen replies"
    )
  if not config.data.packing_mask:
    raise errors.UserError(
      "analyze counts samples one by one, and data.packing_mask=False joins those of a "
      "row; set data.packing_mask=True to count them apart"
    )
  tokenizer = tokenizer_lib.resolve(config)
  prepared = [
    prepare.prepare(source, config.data, tokenizer, console)
    for source in sources.parse(config.data.train)
  ]
  for one in prepared:
    console.print(one.report())
  if any(one.source.weight != 1 for one in prepared):
    console.print("NOTE: each sample counts once: weights of sources have no effect")
  if config.positions.schedule:
    console.print("NOTE: positions.schedule has no effect: all draws are up to its end")
  return prepared


def _counted(
  kind: str,
  title: str,
  describe: Callable[[distances_lib.Counter], Record],
  config: ml_collections.ConfigDict,
  options: Options,
  console: terminal.Console,
) -> Record:
  base = resolve.check(config)
  chosen = options.recipes(base, STRATEGIES)
  prepared = _sources(config, console)
  seq_len = config_lib.row_length(config.data)
  begin = time.perf_counter()
  pieces = dialogues.read(prepared, options.samples)
  counters = measure.count(pieces, chosen, config.seed, seq_len, options.draws)
  seconds = time.perf_counter() - begin
  counted = next(iter(counters.values())).samples
  tokens = next(iter(counters.values())).tokens // options.draws
  has_texts = any(one.is_text[one.usable].any() for one in prepared)
  what = "samples" if has_texts else "dialogues"
  console.print(
    f"{counted // options.draws:,} {what}, {tokens:,} tokens, "
    f"{options.draws} draw(s) of {len(chosen)} strategies in {seconds:.1f} s, "
    f"compiling included: {counted * len(chosen) / seconds:,.0f} {what} per second"
  )
  L = base.max_position
  return {
    "kind": kind,
    "title": f"{title}: {counted // options.draws:,} {what} of {tokens:,} tokens, "
    f"L = {L:,}, p = {base.skip_prob:g}"
    + (f", mean of {options.draws} draws" if options.draws > 1 else ""),
    "sources": [
      {"name": p.source.name.rpartition("/")[2], "samples": len(p.usable)}
      for p in prepared
    ],
    "seq_len": seq_len,
    "max_position": L,
    "skip_prob": base.skip_prob,
    "prob_per": base.prob_per,
    "seed": config.seed,
    "draws": options.draws,
    "strategies": {
      name: {"recipe": {"strategy": chosen[name].strategy, "gaps": chosen[name].gaps}}
      | describe(counter)
      for name, counter in counters.items()
    },
  }


def distances(
  config: ml_collections.ConfigDict, options: Options, console: terminal.Console
) -> Record:
  """Histograms of relative distances; see `measure.histogram`."""
  seq_len = config_lib.row_length(config.data)
  record = _counted(
    "distances",
    "Relative distances that responses see",
    lambda counter: measure.histogram(counter, seq_len),
    config,
    options,
    console,
  )
  far = {name: s["beyond"]["pairs"] for name, s in record["strategies"].items()}
  console.print(
    f"Pairs at {seq_len:,} positions and beyond: their share of all pairs, the share "
    "of each tenth of the way to L, and the distance from the uniform distribution "
    "(KS: the largest difference of the distribution functions; TV: half the sum of "
    "the differences over 200 bins)"
  )
  headings = ("strategy", "share, %", "tenths, %", "KS", "TV")
  console.print(
    terminal.table(
      headings,
      [
        (
          name,
          f"{100 * beyond['share']:.1f}",
          " ".join(f"{100 * part:.1f}" for part in beyond["parts"]),
          f"{beyond['ks']:.3f}",
          f"{beyond['tv']:.3f}",
        )
        if beyond
        else (name, "0", *["-"] * 3)
        for name, beyond in far.items()
      ],
    )
  )
  return record


def coverage(
  config: ml_collections.ConfigDict, options: Options, console: terminal.Console
) -> Record:
  """Positions and distances that occur, and the gaps; see `measure.coverage`."""
  record = _counted(
    "coverage",
    "Positions and gaps",
    measure.coverage,
    config,
    options,
    console,
  )
  headings = (
    "strategy", "below", "distances that occur, %", "positions that occur, %",
    "samples without a gap, %",
  )  # fmt: skip
  rows = [
    (
      name,
      f"{found['limit']:,}",
      f"{100 * found['distances']['share']:.2f}",
      f"{100 * found['positions']['share']:.2f}",
      f"{100 * found['unmoved']:.1f}",
    )
    for name, found in record["strategies"].items()
  ]
  console.print(terminal.table(headings, rows))
  return record


def diagram(
  config: ml_collections.ConfigDict, options: Options, console: terminal.Console
) -> Record:
  """The first dialogues of two turns or more, or texts, under each strategy."""
  if options.draws != 1:
    raise errors.UserError(
      "diagram shows one draw; leave out --draws, or give --config.seed=N for another"
    )
  base = resolve.check(config)
  chosen = options.recipes(base, DIAGRAM)
  pieces = dialogues.read(_sources(config, console))
  several = (
    one
    for piece in pieces
    for one in dialogues.one_by_one(piece)
    if one.blocks[0] >= (2 if one.is_text[0] else 4)
  )
  found = list(itertools.islice(several, options.samples or 3))
  if not found:
    raise errors.UserError(
      "no dialogue of the data has two turns or more, and no text two blocks"
    )
  seq_len = config_lib.row_length(config.data)
  rows = [next(dialogues.batches(one, seq_len, 1)) for one in found]
  batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  samples: list[Record] = [
    {"title": _title(i, one), "strategies": {}} for i, one in enumerate(found, 1)
  ]
  for name, recipe in chosen.items():
    draw = jax.jit(functools.partial(positions.synthesize, recipe, config.seed))
    drawn_BL = np.asarray(draw(batch))
    for sample, spans in zip(samples, preview.samples(batch, drawn_BL), strict=True):
      sample["strategies"][name] = [vars(span) for span in spans]
  return {
    "kind": "diagram",
    "title": f"Position ids, L = {base.max_position:,}, p = {base.skip_prob:g}",
    "max_position": base.max_position,
    "samples": samples,
  }


def _title(i: int, one: dialogues.Dialogues) -> str:
  """Of the i-th sample in a diagram."""
  blocks = one.blocks[0]
  text, turns = f"text {i}: {blocks} blocks", f"dialogue {i}: {blocks // 2} turns"
  return f"{text if one.is_text[0] else turns}, {one.length[0]:,} tokens"


def rotations(
  config: ml_collections.ConfigDict, options: Options, console: terminal.Console
) -> Record:
  """Turns of RoPE's pairs; see `reach.measure`."""
  if options != Options("", 0, 1):
    raise errors.UserError(
      "rope reads no data; remove --strategies, --samples and --draws"
    )
  resolve.check(config)
  record = reach.measure(config)
  headings = (
    "", "positions", "rope", f"of {record['pairs']} pairs turn fully",
    "reach angles beyond pretraining's",
  )  # fmt: skip
  rows = [
    (
      line["name"],
      f"{line['distance']:,}",
      line["rope"],
      str(line["full_turn"]),
      str(line["beyond_pretraining"]),
    )
    for line in record["lines"]
  ]
  console.print(terminal.table(headings, rows))
  return record


MEASUREMENTS = {
  "distances": distances,
  "coverage": coverage,
  "diagram": diagram,
  "rope": rotations,
}
