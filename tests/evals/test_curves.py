"""Pictures of scores by length."""

import itertools

import pytest

from skipalign_jax.evals import babilong, curves, heatmap, mrcr
from skipalign_jax.evals.ruler import task as ruler_task


@pytest.mark.parametrize(
  ("module", "name"), [(babilong, "babilong"), (mrcr, "mrcr"), (ruler_task, "ruler")]
)
def test_a_table_becomes_lines_where_it_has_lengths(module, name, tmp_path):
  rows = {"one": {"0": 1.0, "2048": 0.7, "16384": 0.2}, "without text": {"0": 0.5}}
  summary = {"mean_of": "11 of 13 tasks", "average": 0.5, "table": rows}
  results = {"protocol": {"model": "m", "window": 8192}, "summary": summary}
  (picture,) = module.draw(None, results, tmp_path)
  assert picture.name == f"{name}.png" and picture.stat().st_size > 5000
  summary["table"] = {"without text": {"0": 0.5}}
  assert module.draw(None, results, tmp_path) == []


@pytest.mark.parametrize("last", [256, 16_000, 1 << 20])
def test_numbers_of_an_axis_of_lengths_are_there_and_apart(last):
  """Buckets of equal width had no number but powers of two, often none at all."""
  equal = curves.ticks([last // 16 * (i + 1) for i in range(16)])
  assert 8 <= len(equal) < 16 and equal[-1] == last
  assert min(b / a for a, b in itertools.pairwise(equal)) >= 16 ** (1 / curves.TICKS)
  doubled = [last >> i for i in range(7, -1, -1)]
  assert curves.ticks(doubled) == doubled
  assert curves.ticks([last]) == [last]


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are drawn; they are not saved."""
  found = []
  keep = lambda figure, *_, **__: found.append(figure)
  monkeypatch.setattr(curves.plotting, "save", keep)
  return found


@pytest.mark.parametrize(
  "values", [(10.0, 10.03), (10.0, 24.0), (12.1, 18.9), (7.0, 9000.0)]
)
def test_a_narrow_range_of_perplexities_has_numbers(values, drawn, tmp_path):
  points = list(zip((1024, 2048), values, strict=True))
  curves.draw({"a": points}, tmp_path / "a.png", "title", "tokens", "perplexity")
  (axes,) = drawn[0].axes
  low, high = axes.get_ylim()
  assert sum(low <= y <= high for y in axes.get_yticks()) >= 3


def test_the_line_at_the_window_is_explained(drawn, tmp_path):
  window = 1024
  lines = {"a": [(512, 0.5), (2048, 0.25)]}
  curves.draw(lines, tmp_path / "a.png", "title", "tokens", "score", window)
  (legend,) = drawn[0].axes[0].get_legend().get_texts()[1:]
  assert legend.get_text() == "the model's window"
  cells = [{"length": n, "depth": 0.5, "score": 0.5} for n in (512, 2048)]
  heatmap.draw([{"title": "m", "window": window, "cells": cells}], tmp_path / "b.png")
  assert "the model's window" in drawn[1].axes[0].get_xlabel()


def test_titles_and_labels_of_neighbouring_maps_do_not_overlap(drawn, tmp_path):
  cells = [{"length": n, "depth": 0.5, "score": 0.5} for n in (512, 2048)]
  panel = {"window": 1024, "cells": cells}
  panel["title"] = f"runs/{'a_long_name_of_a_model/' * 3}7\nkeys found: 50.0"
  heatmap.draw([panel] * 6, tmp_path / "a.png")
  (figure,) = drawn
  figure.draw_without_rendering()
  maps = [axes for axes in figure.axes if axes.get_xlabel()][:6]
  boxes = [axes.get_tightbbox() for axes in maps]
  for i, one in enumerate(boxes):
    assert not any(one.overlaps(other) for other in boxes[:i])
