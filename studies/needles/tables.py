"""The study's tables, in Markdown, from study_b.json alone."""

from typing import Any

Content = dict[str, Any]


def report(content: Content) -> str:
  """All tables, as a page."""
  tables = "\n\n".join(
    part
    for part in (
      main(content, "chat", "Needles in the chat format, % (mean, 95 % over seeds)"),
      main(content, "text", "In the text format that the base learned, %"),
      words(content),
      pairs(content),
      targets(content),
      sweeps(content),
      losses(content),
    )
    if part
  )
  made = "Made by `make study-b` from studies/needles/results/study_b.json."
  return f"# Study B: tables\n\n{made}\n\n{tables}\n"


def _percent(cell: Content) -> str:
  shown = f"{100 * cell['mean']:.1f}"
  if cell["high"] is not None:
    shown += f" ± {100 * (cell['high'] - cell['mean']):.1f}"
  return shown


def _table(title: str, columns: list[str], rows: list[list[str]]) -> str:
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join([f"{title}\n", *("| " + " | ".join(line) + " |" for line in lines)])


def test_lengths(content: Content) -> list[str]:
  """The lengths of test needles, in windows."""
  return [str(n) for key in ("tested", "further") for n in content["settings"][key]]


def _beyond(content: Content) -> str:
  """Title of the column with the mean beyond the window: the lengths in it."""
  return f"mean of {', '.join(map(str, content['settings']['tested'][1:]))} W"


def main(content: Content, form: str, title: str) -> str:
  """Accuracy by row and length, each row at its own NTK target."""
  tested = test_lengths(content)
  rows = [
    [name, str(row["s"]), str(len(row["seeds"]))]
    + [_percent(row[form][n]) for n in ("beyond", *tested)]
    for name, row in content["table"].items()
  ]
  columns = ["row", "s", "seeds", _beyond(content), *(f"{n} W" for n in tested)]
  return _table(title, columns, rows) if rows else ""


def words(content: Content) -> str:
  """Accuracy of the words of an answer: means over seeds, test needles."""
  rows = []
  for name, row in content["table"].items():
    models = [m["words"] for m in _tested(content, name, row["s"])]
    tested = test_lengths(content)
    for i, word in enumerate(("keys", "values after the right words")):
      means = [sum(m[n][i] for m in models) / len(models) for n in tested]
      rows.append([name, word, *(f"{100 * mean:.1f}" for mean in means)])
  columns = ["row", "word", *(f"{n} W" for n in test_lengths(content))]
  return _table("Words of the answers, %", columns, rows) if rows else ""


def _tested(content: Content, name: str, target: int) -> list[Content]:
  """The models of a row of the main table."""
  row = "base" if name.startswith("base") else name
  return [
    m
    for m in content["models"]
    if (m["row"], m["s"], m["needles"]) == (row, target, "test")
  ]


def pairs(content: Content) -> str:
  """Differences, paired by seed and by haystack."""
  rows = []
  for name, pair in (content["claims"] | content["others"]).items():
    for where in ("beyond", "longest", "window"):
      cell = pair[where]
      rows.append(
        [
          name,
          " - ".join(pair["rows"]),
          where,
          _percent(cell),
          ", ".join(f"{100 * d:+.1f}" for d in cell["by_seed"]),
          f"{cell['p_seeds']:.3f}",
          f"{pair['p_haystacks']:.1g}" if where == "beyond" else "",
          cell["verdict"],
        ]
      )
  columns = ["claim", "rows", "at", "points", "by seed", "p, seeds", "p, haystacks", ""]
  return _table("Paired differences", columns, rows) if rows else ""


def targets(content: Content) -> str:
  """Validation accuracies that decide on the NTK target."""
  rows = [
    [row, s, *(f"{100 * value:.1f}" for value in cells.values())]
    for row, by_target in content["targets"].items()
    for s, cells in by_target.items()
  ]
  tested = [f"{n} W" for n in content["settings"]["tested"]]
  title = "Validation needles of the pilots by NTK target, %"
  return _table(title, ["row", "s", *tested, _beyond(content)], rows) if rows else ""


def sweeps(content: Content) -> str:
  """Validation accuracy of the sweeps."""
  by_seed = lambda cell: ", ".join(f"{100 * x:.1f}" for x in cell["by_seed"])
  rows = [
    [name, row, *map(_percent, cells.values()), by_seed(cells["beyond"])]
    for name, found in content["sweeps"].items()
    if len(found) > 2  # more than the two rows of reference
    for row, cells in found.items()
  ]
  tested = [f"{n} W" for n in content["settings"]["tested"]]
  columns = ["sweep", "row", *tested, _beyond(content), "by seed"]
  return _table("Sweeps, validation needles, %", columns, rows) if rows else ""


def losses(content: Content) -> str:
  """Misalignment, held-out SFT loss, and losses by position, means over seeds."""
  rows = []
  for name, row in content["table"].items():
    models = _tested(content, name, row["s"])
    mean = lambda values: sum(values) / len(values)
    cells = [f"{row[key]['mean']:.3f}" if key in row else ""
             for key in ("symmetric_kl", "held_out_loss")]  # fmt: skip
    for kind in ("filler", "answers"):
      parts = zip(*(m["loss"][kind] for m in models), strict=True)
      cells += [f"{mean(values):.2f}" for values in parts]
    rows.append([name, *cells])
  tested = [f"to {n} W" for n in content["settings"]["tested"]]
  columns = ["row", "symmetric KL", "held-out SFT loss"]
  columns += [f"{kind} {n}" for kind in ("filler", "answers") for n in tested]
  title = "Misalignment at answers, SFT loss, and losses in long texts, nats"
  return _table(title, columns, rows) if rows else ""
