"""The explorer in a browser: its controls and its address show what Python draws.

Needs a headless Chromium: on the PATH, Playwright's, or the one that $CHROMIUM names.
"""

import pathlib
import urllib.parse

import browser
import numpy as np
import pytest

from skipalign_jax import config as config_lib
from skipalign_jax.analysis import distances
from skipalign_jax.method import positions

ADDRESS = (pathlib.Path(__file__).parents[2] / "docs/explorer.html").as_uri()
FIRST_EXAMPLE = (35, 180, 20, 260, 25, 140, 30, 210)
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(
    browser.program() is None,
    reason="no headless Chromium: install one, or name its program in CHROMIUM",
  ),
]


@pytest.fixture(scope="module")
def page():
  with browser.Page(ADDRESS) as opened:
    yield opened
  assert opened.mistakes == []


def open_at(page, **chosen):
  """The same page at another address, as from a link that someone shared."""
  page.run(f"location.hash = '{urllib.parse.urlencode(chosen)}'")
  page.run("new Promise(done => setTimeout(done, 50))")


def table(page):
  """(block, role, tokens, positions, bias, gap) of each row under "In numbers"."""
  return page.run(
    "[...document.querySelectorAll('#table tr')].slice(1)"
    ".map(row => [...row.children].map(cell => cell.textContent))"
  )


def shown(page):
  """The position of every token, as the table shows them."""
  spans = [row[3].replace(",", "").split("–") for row in table(page)]
  return [n for first, last in spans for n in range(int(first), int(last) + 1)]


def drawn(sizes, sample=22, seed=0, **recipe):
  """What training draws for blocks of these sizes, an instruction first."""
  m = sum(sizes)
  block_L = np.repeat(np.arange(len(sizes)), sizes)
  batch = dict(
    segment_ids=np.ones((1, m), np.int32),
    block_ids=block_L[None],
    is_response=block_L[None] % 2 == 1,
    sample_ids=np.full((1, m), sample, np.uint32),
    epochs=np.zeros((1, m), np.int32),
  )
  default = dict(strategy="skip_outer", max_position=100_000, skip_prob=0.5,
                 prob_per="block", resample="never", gaps="sequential")  # fmt: skip
  config = positions.PositionConfig(**default | recipe)
  return np.asarray(positions.synthesize(config, seed, batch))[0].tolist()


def bins(page):
  """(first distance, last, pairs at a distance) of each bin of the histogram."""
  titles = page.run(
    "[...document.querySelectorAll('#histogram .bin title')].map(t => t.textContent)"
  )
  found = []
  for title in titles:
    span, _, rest = title.replace(",", "").partition(": this draw ")
    first, last = span.split(" to ")
    found.append((int(first), int(last), float(rest.split(" ")[0])))
  return found


def counted(sizes, place_L, limit):
  """Pairs at each distance below `limit`, by the counter of `analyze`."""
  place_L, first = np.array(place_L), np.cumsum([0, *sizes[:-1]])
  block_L = np.repeat(np.arange(len(sizes)), sizes)
  starts = np.flatnonzero(
    np.r_[True, (np.diff(place_L) != 1) | (np.diff(block_L) != 0)]
  )
  assert set(first) <= set(starts.tolist())
  counter = distances.Counter(limit)
  counter.add(
    distances.Runs(
      sample=np.ones(len(starts), int),
      first=place_L[starts],
      size=np.diff(np.r_[starts, len(place_L)]),
      is_query=block_L[starts] % 2 == 1,
    )
  )
  return counter.pairs()


@pytest.mark.parametrize("strategy", config_lib.KEYS["positions.strategy"].choices)
def test_every_strategy_is_shown_as_drawn(page, strategy):
  sizes = (9, 20, 4, 23)  # randpos has a row a token, and 60 of them are shown
  text = "\n".join(f"{who}: {n}" for who, n in zip("uaua", sizes, strict=True))
  open_at(page, strategy=strategy, L=3000, p=0.9, seed=7, sample=4, text=text)
  wanted = drawn(
    sizes, sample=4, seed=7, strategy=strategy, max_position=3000, skip_prob=0.9
  )
  assert shown(page) == wanted
  assert (wanted[-1] > 55) == (strategy != "contiguous")
  pairs = counted(sizes, wanted, 3000)
  found = bins(page)
  assert found[0][0] == 0 and found[-1][1] == 2999
  for first, last, mean in found:
    assert mean == pytest.approx(pairs[first : last + 1].mean(), abs=6e-4)
  assert f"{sum(pairs):,.0f} pairs" in page.run(
    "document.getElementById('summary').textContent"
  )


def test_controls_move_the_blocks_and_the_address(page):
  open_at(page, example="Four turns, lengths only", strategy="skip_outer", L=100_000,
          p=0.5, gaps="sequential", prob_per="block", seed=0, sample=22)  # fmt: skip
  recipe = {}
  assert shown(page) == drawn(FIRST_EXAMPLE)

  def same(sizes=FIRST_EXAMPLE, sample=22, seed=0):
    return shown(page) == drawn(sizes, sample, seed, **recipe)

  page.choose("strategy", "skip_all")
  recipe["strategy"] = "skip_all"
  assert same()
  page.type("L", "12345")
  recipe["max_position"] = 12_345
  assert same()
  page.choose("slider", "50")
  recipe["max_position"] = 14_000  # in round numbers
  assert page.run("document.getElementById('L').value") == "14000" and same()
  page.choose("p", "0.83")
  recipe["skip_prob"] = 0.83
  assert same()
  page.choose("gaps", "uniform")
  page.choose("probPer", "sample")
  recipe |= dict(gaps="uniform", prob_per="sample")
  assert same()
  page.type("seed", "5")
  page.type("sampleId", "40")
  assert same(sample=40, seed=5)
  page.click("next")
  assert same(sample=41, seed=5)
  page.type("text", "user: 12\nassistant: 30\nuser: one two, three")
  assert same((12, 30, 4), 41, 5)
  address = page.run("location.hash")
  chosen = dict(urllib.parse.parse_qsl(address[1:]))
  assert chosen["strategy"] == "skip_all" and chosen["sample"] == "41"
  assert page.run("document.getElementById('example').value") == "Your own"

  # The address alone makes the same page, in another browser.
  with browser.Page(ADDRESS + address) as other:
    assert shown(other) == shown(page) and other.mistakes == []


def test_play_draws_on_and_stops(page):
  open_at(page, sample=100)
  button = "document.getElementById('play').textContent"
  assert page.run(button) == "Play"
  page.click("play")
  assert page.run(button) == "Pause"
  page.run("new Promise(done => setTimeout(done, 1100))")
  page.click("play")
  assert page.run(button) == "Play"
  now = page.run("document.getElementById('sampleId').value")
  assert int(now) > 100
  page.run("new Promise(done => setTimeout(done, 1000))")
  assert page.run("document.getElementById('sampleId').value") == now


@pytest.mark.parametrize(
  "wrong", ["strategy=skip_out", "L=many", "example=toString", "%%"]
)
def test_a_wrong_address_keeps_what_there_is(page, wrong):
  open_at(page, strategy="skip_inner", L=5000, text="u: 5\na: 6")
  before = shown(page)
  page.run(f"location.hash = '{wrong}'")
  page.run("new Promise(done => setTimeout(done, 50))")
  assert shown(page) == before


@pytest.mark.parametrize("width", [320, 400, 1100])
def test_nothing_sticks_out(page, width):
  page.resize(width, 800)
  page.run("new Promise(done => setTimeout(done, 50))")
  assert page.run("document.documentElement.scrollWidth") <= width
  page.resize(1100, 900)


@pytest.mark.parametrize("wrong", ["0", "-5", "300000", "2.5", ""])
def test_a_number_that_is_not_allowed_is_reported(page, wrong):
  message = "document.getElementById('wrong').textContent"
  open_at(page, strategy="skip_outer", L=5000, p=0.5, gaps="sequential", seed=0,
          prob_per="block", sample=22, text="u: 5\na: 6\nu: 7\na: 8")  # fmt: skip
  before = shown(page)
  page.choose("L", wrong)
  assert "whole number from 1 to 200,000; the pictures show 5,000" in page.run(message)
  assert shown(page) == before and "L=5000" in page.run("location.hash")
  page.choose("L", "6000")
  assert page.run(message) == "" and shown(page) == drawn(
    (5, 6, 7, 8), max_position=6000
  )


def top(page, what):
  return page.run(f"document.getElementById('{what}').getBoundingClientRect().top")


def test_pictures_are_near_the_top_of_a_phone():
  with browser.Page(ADDRESS, width=390, height=844) as phone:
    assert top(phone, "blocks") < 300
    assert top(phone, "spans") < 1000  # after the controls
    phone.run("scrollTo(0, 400)")
    assert 0 <= top(phone, "blocks") < 100  # it stays in view while controls are used
    assert phone.mistakes == []


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_those_of_the_figures(dark):
  fill = "getComputedStyle(document.querySelector('{}')).fill"
  with browser.Page(ADDRESS, dark=dark) as page:
    for what, rgb in {
      "#blocks .instruction": "rgb(0, 114, 178)",
      "#blocks .response": "rgb(230, 159, 0)",
      "#histogram .now": "rgb(230, 159, 0)",
    }.items():
      assert page.run(fill.format(what)) == rgb, what
    opacity = "getComputedStyle(document.querySelector('.now')).opacity"
    assert page.run(opacity) == "1"  # on a dark page it would turn brown


def test_figures_of_the_site_keep_their_colours_on_a_dark_page(tmp_path):
  style = (pathlib.Path(__file__).parents[2] / "docs/site.css").read_text()
  html = f"""<style>{style}</style><body data-md-color-scheme="slate">
    <div class="md-typeset"><img src="images/strategies.png"></div>"""
  (tmp_path / "page.html").write_text(html)
  with browser.Page((tmp_path / "page.html").as_uri()) as site:
    found = site.run(
      "(x => [x.filter, x.backgroundColor])"
      "(getComputedStyle(document.querySelector('img')))"
    )
  assert found == ["none", "rgb(255, 255, 255)"]
