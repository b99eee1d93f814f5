"""The HTML page of compared evaluations."""

import html.parser
import pathlib
import re

import browser
import pytest

from skipalign_jax.evals import compare_page, compare_table

EVIL = '</td><script>alert(1)</script><img src="//x">&\x1b[2J\n' + "long" * 40


def panel(lengths, scores, window=4096, title=f"{EVIL}\nkeys found: 50.0"):
  cells = [
    dict(length=length, depth=depth, score=score)
    for length, score in zip(lengths, scores, strict=True)
    for depth in (0.1, 0.9)
  ]
  return {"title": title, "window": window, "cells": cells}


def page():
  cell = compare_table.Cell
  row = compare_table.Row(EVIL, (EVIL, ""), {"Avg.": cell(42.51, "x", "part")}, [])
  columns = ["Avg.", *(f"column {i}" for i in range(8))]
  tables = [compare_table.Table("A & B", columns, [row], [EVIL], ".1f")]
  panels = [
    panel((1024, 2048, 4096, 8192), (1, 0.5, 0.2, 0)),
    panel((8192,), (float("nan"),)),
  ]
  return compare_page.page(tables, panels)


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    if tag != "meta":
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_it_is_whole_and_names_are_text():
  text = page()
  tags = Tags(text)
  assert tags.open == [] and text.replace("\n", "").isprintable()
  names = {tag for tag, _ in tags.found}
  assert not names & {"script", "img", "link", "iframe", "a"}
  assert not [a for _, attributes in tags.found for a in attributes if a[:2] == "on"]
  assert "url(" not in text and "@import" not in text
  assert "&lt;script&gt;" in text and "\x1b" not in text


def test_tables_and_maps_have_the_numbers():
  text = page()
  assert "<h2>A &amp; B</h2>" in text and "<td>42.5*</td><td>-</td>" in text
  rows = re.findall(r"<tr><th>(?:10|90)</th>(.*?)</tr>", text)
  shown = [re.findall(r">([^<>]+)</td>", row) for row in rows]
  assert shown == [["100", "50", "20", "0"]] * 2 + [["-"]] * 2
  assert [row.count('class="beyond"') for row in rows] == [1, 1, 0, 0]
  assert rows[0].index('class="beyond"') > rows[0].index(">20<")


@pytest.mark.parametrize("score", [0, 0.1, 0.2, 0.3, 0.5, 0.75, 0.85, 0.9, 1])
def test_scores_are_readable_on_their_colours(score):
  ground, ink = re.findall("#([0-9a-f]+)", compare_page._score(score))

  def luminance(rgb):
    low = [int(rgb[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04 else ((x + 0.055) / 1.055) ** 2.4 for x in low]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  a, b = luminance(ground), luminance(ink * 2)
  assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5


@pytest.mark.browser
@pytest.mark.skipif(browser.program() is None, reason="no headless Chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_on_any_screen(tmp_path, width, dark):
  path = pathlib.Path(tmp_path / "compare.html")
  path.write_text(page(), encoding="utf-8")
  with browser.Page(path.as_uri(), width=width, dark=dark) as opened:
    assert opened.run("document.documentElement.scrollWidth") <= width
    ground = opened.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert opened.mistakes == []
