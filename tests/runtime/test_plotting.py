"""Names in pictures are names, not mathematics."""

import pytest
from matplotlib import figure as figure_lib

from skipalign_jax.runtime import plotting


@pytest.mark.parametrize("name", ["runs/$\\foo$x", "a$b$c", "$", "\x1b[1m\udc80\u202e"])
def test_names_are_drawn_as_they_are(tmp_path, name):
  figure = figure_lib.Figure()
  axes = figure.subplots()
  axes.plot([1, 2], [1, 1000], label=name)
  axes.set_title(name)
  axes.set_yscale("log")
  figure.suptitle(name)
  axes.legend()
  plotting.save(figure, tmp_path / "a.png", dpi=20)
  assert (tmp_path / "a.png").stat().st_size > 100
  assert figure.get_suptitle() == axes.get_title()
  assert axes.get_title().isprintable() and not axes.title.get_parse_math()
  powers = [label.get_text() for label in axes.get_yticklabels()]
  assert any("10^{2}" in power for power in powers)
  assert all(label.get_parse_math() for label in axes.get_yticklabels())


def test_a_path_may_be_text_as_in_the_notebooks(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plotting.save(figure_lib.Figure(), "a.png", dpi=20)
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
