"""What a run trains, measured and drawn: python -m skipalign_jax.analyze WHAT …

  distances  relative distances over the whole data set (SkipAlign, Figure 2)
  coverage   positions and distances met at all, gaps
  diagram    a few dialogues under each strategy (Figure 1)
  rope       how far RoPE's pairs turn, in pretraining and in the run
  training   losses and evaluations of runs, over steps
  draw       the picture of such a JSON again

Each writes WHAT.json to --out (runs/analysis) and from it alone WHAT.png.
--strategies=contiguous,skip_outer,skip_outer/uniform names strategies and gaps,
--samples=N takes only the first N dialogues (diagram: N of several turns, 3 by
default), --draws=N draws with N seeds.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from rich import console as rich_console

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.analysis import dialogues, measure, pictures, reach, training
from skipalign_jax.analysis import distances as distances_lib
from skipalign_jax.data import prepare, sources
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import positions
from skipalign_jax.runtime import compile_cache, errors, terminal, untrusted
from skipalign_jax.training import preview, resolve

USAGE = """
  python -m skipalign_jax.analyze distances|coverage|diagram|rope
    --config=FILE[:variant] [--strategies=A,B/GAPS] [--samples=N] [--draws=N]
    [--out=DIR] [--config.key=value …]
  python -m skipalign_jax.analyze training WORKDIR … [--out=DIR]
  python -m skipalign_jax.analyze draw FILE.json …"""
OUT = "runs/analysis"
STRATEGIES = "contiguous,skip_outer,skip_outer/uniform,skip_inner,skip_all"
DIAGRAM = "contiguous,skip_outer,skip_inner,skip_all"

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Given:
  """The flags of a command: "" and 0 are its own defaults."""

  strategies: str
  samples: int
  draws: int


def main(argv: Sequence[str] = sys.argv) -> int:
  """Runs one command; returns the exit status."""
  console = terminal.Console()
  what, rest = (argv[1], list(argv[2:])) if len(argv) > 1 else ("", [])
  if what in ("", "-h", "--help") or {"-h", "--help"} & set(rest):
    print(f"{__doc__}\nusage: {USAGE}")
    return 0 if what else 2
  if what == "draw":
    for name in rest:
      console.print(f"written: {redraw(pathlib.Path(name))}")
    return 0
  if what == "training":
    folders = [name for name in rest if not name.startswith("--")]
    flags = [name for name in rest if name.startswith("--")]
    if any(not flag.startswith("--out=") for flag in flags):
      raise errors.UserError(f"unexpected flag {flags[0]!r}\nusage: {USAGE}")
    out = flags[-1].removeprefix("--out=") if flags else OUT
    _write(training.read(folders), out, console)
    return 0
  if what not in COMMANDS:
    raise errors.UserError(f"{what!r} is not known\nusage: {USAGE}")
  config, flags = cli.parse(
    ["analyze", *rest],
    USAGE,
    strategies=cli.Flag("", "NAME or NAME/GAPS, with commas. Empty: a selection."),
    samples=cli.Flag(0, "Dialogues to read. 0: all."),
    draws=cli.Flag(1, "Draws of positions per dialogue."),
    out=cli.Flag(OUT, "Folder of the results."),
  )
  if flags["samples"] < 0 or flags["draws"] < 1:
    raise errors.UserError("--samples must be 0 (all) or more, --draws 1 or more")
  compile_cache.enable()
  given = Given(flags["strategies"], flags["samples"], flags["draws"])
  _write(COMMANDS[what](config, given, console), flags["out"], console)
  return 0


def redraw(path: pathlib.Path) -> pathlib.Path:
  """The picture beside a JSON that `analyze` wrote.

  Raises:
    UserError: the file cannot be read, or is something else.
  """
  try:
    record = untrusted.parse_json(untrusted.read(path, untrusted.MAX_JSON_BYTES))
    return pictures.draw(record, path.with_suffix(".png"))
  except errors.UserError as error:
    raise errors.UserError(f"{path} cannot be drawn: {error}") from error
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{path} cannot be drawn: it is damaged ({error!r}); measure again"
    ) from error


def _write(record: Record, out: str, console: rich_console.Console) -> None:
  folder = pathlib.Path(out).expanduser()
  path = folder / f"{record['kind']}.json"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(record), encoding="utf-8")
  except OSError as error:
    raise errors.UserError(f"--out={out} cannot be written: {error}") from error
  console.print(f"written: {path}, {redraw(path)}")


def _text(record: Record) -> str:
  """JSON with a line a list: histograms would be columns of numbers."""
  text = json.dumps(record, indent=1, ensure_ascii=False)
  flat = lambda match: " ".join(match[0].split())
  return re.sub(r"\[[^\[\]{}]*\]", flat, text) + "\n"


def _sources(
  config: ml_collections.ConfigDict, console: rich_console.Console
) -> list[prepare.Prepared]:
  if config.data.text_window:
    raise errors.UserError(
      "analyze counts samples as training sees them, and data.text_window crops them "
      "first; set it to 0"
    )
  tokenizer = tokenizer_lib.resolve(config)
  prepared = [
    prepare.prepare(source, config.data, tokenizer, console)
    for source in sources.parse(config.data.train)
  ]
  for one in prepared:
    console.print(one.report())
  return prepared


def _counted(
  kind: str,
  title: str,
  describe: Callable[[distances_lib.Counter], Record],
  config: ml_collections.ConfigDict,
  given: Given,
  console: rich_console.Console,
) -> Record:
  base = resolve.check(config)
  chosen = measure.recipes(base, given.strategies or STRATEGIES)
  prepared = _sources(config, console)
  seq_len = config_lib.row_length(config.data)
  begin = time.perf_counter()
  pieces = dialogues.read(prepared, given.samples)
  counters = measure.count(pieces, chosen, config.seed, seq_len, given.draws)
  seconds = time.perf_counter() - begin
  counted = next(iter(counters.values())).samples
  tokens = next(iter(counters.values())).tokens // given.draws
  console.print(
    f"{counted // given.draws:,} dialogues, {tokens:,} tokens, {given.draws} draw(s) "
    f"of {len(chosen)} strategies in {seconds:.1f} s, compiling included: "
    f"{counted * len(chosen) / seconds:,.0f} dialogues a second"
  )
  L = base.max_position
  return {
    "kind": kind,
    "title": f"{title}: {counted // given.draws:,} dialogues of {tokens:,} tokens, "
    f"L = {L:,}, p = {base.skip_prob:g}"
    + (f", mean of {given.draws} draws" if given.draws > 1 else ""),
    "sources": [
      {"name": p.source.name.rpartition("/")[2], "samples": len(p.usable)}
      for p in prepared
    ],
    "seq_len": seq_len,
    "max_position": L,
    "skip_prob": base.skip_prob,
    "prob_per": base.prob_per,
    "seed": config.seed,
    "draws": given.draws,
    "strategies": {
      name: {"recipe": {"strategy": chosen[name].strategy, "gaps": chosen[name].gaps}}
      | describe(counter)
      for name, counter in counters.items()
    },
  }


def distances(
  config: ml_collections.ConfigDict, given: Given, console: rich_console.Console
) -> Record:
  """Histograms of relative distances; see `measure.histogram`."""
  seq_len = config_lib.row_length(config.data)
  record = _counted(
    "distances",
    "Relative distances that responses see",
    lambda counter: measure.histogram(counter, seq_len),
    config,
    given,
    console,
  )
  far = {name: s["beyond"]["pairs"] for name, s in record["strategies"].items()}
  console.print(
    f"Pairs at {seq_len:,} positions and beyond: their share, what each tenth of the "
    "way to L has of them, and how far they are from uniform (KS, TV)"
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
  config: ml_collections.ConfigDict, given: Given, console: rich_console.Console
) -> Record:
  """Positions and distances that occur, and the gaps; see `measure.coverage`."""
  record = _counted(
    "coverage",
    "Positions and gaps",
    measure.coverage,
    config,
    given,
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
  config: ml_collections.ConfigDict, given: Given, console: rich_console.Console
) -> Record:
  """The first dialogues of two turns or more, under each strategy."""
  base = resolve.check(config)
  chosen = measure.recipes(base, given.strategies or DIAGRAM)
  pieces = dialogues.read(_sources(config, console))
  several = (
    one for piece in pieces for one in dialogues.one_by_one(piece) if one.blocks[0] >= 4
  )
  found = list(itertools.islice(several, given.samples or 3))
  if not found:
    raise errors.UserError("no dialogue of the data has two turns or more")
  seq_len = config_lib.row_length(config.data)
  rows = [next(dialogues.batches(one, seq_len, 1)) for one in found]
  batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  samples: list[Record] = [
    {
      "title": f"dialogue {i}: {one.blocks[0] // 2} turns, {one.length[0]:,} tokens",
      "strategies": {},
    }
    for i, one in enumerate(found, 1)
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


def rotations(
  config: ml_collections.ConfigDict, given: Given, console: rich_console.Console
) -> Record:
  """Turns of RoPE's pairs; see `reach.measure`."""
  if given != Given("", 0, 1):
    raise errors.UserError(
      "rope reads no data: leave --strategies, --samples and --draws out"
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


COMMANDS = {
  "distances": distances,
  "coverage": coverage,
  "diagram": diagram,
  "rope": rotations,
}


if __name__ == "__main__":
  errors.run_command(main)
