"""Perplexity by position and LongPPL equal those of full forward passes."""

import functools
import gzip
import math

import jax
import numpy as np
import pytest
import tiny
import tiny_subject
from rich import console as rich_console

from skipalign_jax.data import sources
from skipalign_jax.evals import haystack, perplexity, runner, tasks
from skipalign_jax.model import backends
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
BEGINS = tiny_subject.make(begin="<|endoftext|>")
QUIET = rich_console.Console(quiet=True)
MAX_LENGTH = 48  # tokens of the longest window here


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 8)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)


@pytest.fixture
def texts(tmp_path):
  """Two files of random letters; the second compressed."""
  rng = np.random.default_rng(0)
  paths = [tmp_path / "one.txt", tmp_path / "two.txt.gz"]
  for path, length in zip(paths, (150, 110), strict=True):
    data = bytes(rng.integers(97, 123, length).tolist())
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return paths


LOGITS = jax.jit(functools.partial(tiny.naive_logits, config=tiny_subject.CONFIG))


def naive_log_p(tokens):
  """log p of tokens 1, 2, … given all before them."""
  row = np.pad(tokens, (0, MAX_LENGTH - len(tokens)))
  logits_LV = LOGITS(
    tiny_subject.PARAMS,
    tokens_L=row,
    positions_L=np.arange(MAX_LENGTH),
    mask_LL=np.tri(MAX_LENGTH, dtype=bool),
  )
  log_p_LV = jax.nn.log_softmax(logits_LV[: len(tokens) - 1])
  return np.take_along_axis(np.asarray(log_p_LV), np.array(tokens[1:])[:, None], 1)[
    :, 0
  ]


def run(tmp_path, paths, subject=SUBJECT, **options):
  files = ",".join(map(str, paths))
  options = tasks.options("perplexity", dict(files=files) | options)
  return runner.run("perplexity", perplexity, options, subject, tmp_path / "out", QUIET)


def test_each_window_read_once(texts, tmp_path):
  results = run(tmp_path, texts, length=32, documents=3)
  summary = results["summary"]
  tokens = SUBJECT.encode(texts[0].read_text())
  naive = [naive_log_p(tokens[32 * i : 32 * (i + 1)]) for i in range(3)]
  for record, log_p in zip(results["items"][:3], naive, strict=True):
    assert record["tokens"] == 31
    np.testing.assert_allclose(record["nll"], -log_p.sum(), rtol=1e-5)
    at = {str(2**k): -log_p[2**k - 1 : 2 ** (k + 1) - 1] for k in range(5)}
    assert {low: n for low, (_, n) in record["buckets"].items()} == {
      low: len(found) for low, found in at.items()
    }
    for low, found in at.items():
      np.testing.assert_allclose(record["buckets"][low][0], found.sum(), rtol=1e-4)
  assert summary["windows"] == {str(texts[0]): 3, str(texts[1]): 3}
  records = results["items"]
  total = sum(record["nll"] for record in records)
  assert summary["perplexity"] == pytest.approx(math.exp(total / (6 * 31)))
  assert summary["tokens"] == 6 * 31
  assert summary["nll"]["n"] == 6
  assert summary["nll"]["mean"] == pytest.approx(total / (6 * 31))
  assert list(summary["by_bucket"]) == ["1-1", "2-3", "4-7", "8-15", "16-31"]
  last = summary["by_bucket"]["16-31"]
  in_last = sum(record["buckets"]["16"][0] for record in records)
  assert last["perplexity"] == pytest.approx(math.exp(in_last / (6 * 16)))
  assert (tmp_path / "out" / "perplexity.png").stat().st_size > 5_000


@pytest.mark.parametrize("subject", [SUBJECT, BEGINS], ids=["bare", "begins"])
@pytest.mark.parametrize("stride", [1, 5, 8])
def test_sliding_scores_each_token_once_with_enough_before_it(
  texts, tmp_path, stride, subject
):
  length, windows = 24, 4
  results = run(
    tmp_path,
    texts[:1],
    subject,
    length=length,
    stride=stride,
    documents=windows,
    bucket=10,
  )
  head = subject.encode("", special=True)
  text = SUBJECT.encode(texts[0].read_text())
  reach = length - len(head) + (windows - 1) * stride  # tokens of text that are read
  found = []
  for i in range(0 if head else 1, reach):
    # As many whole strides as leave the token in its window.
    first = max(0, -((length - len(head) - 1 - i) // stride) * stride)
    first = min(first, (windows - 1) * stride)
    before = [*head, *text[first:i]]
    assert len(before) >= min(length - stride, i + len(head))
    found.append((len(before), naive_log_p([*before, text[i]])[-1]))
  summary = results["summary"]
  assert summary["tokens"] == len(found)
  nll = -sum(log_p for _, log_p in found) / len(found)
  assert summary["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
  for low in (0, 10, 20):
    high = min(low + 10, length)
    inside = [log_p for n, log_p in found if low <= n < high]
    bucket = summary["by_bucket"][f"{low}-{high - 1}"]
    assert bucket["tokens"] == len(inside)
    assert bucket["perplexity"] == pytest.approx(math.exp(-np.mean(inside)), rel=1e-4)


@pytest.mark.parametrize("subject", [SUBJECT, BEGINS], ids=["bare", "begins"])
@pytest.mark.parametrize("stride", [0, 6])
def test_longppl(texts, tmp_path, subject, stride):
  short, length = 8, 40
  settings = dict(length=length, documents=2, stride=stride, longppl=True, short=short)
  settings |= dict(alpha=0.1, beta=-6.0)
  results = run(tmp_path, texts[:1], subject, **settings)
  head = subject.encode("", special=True)
  scored, gained = 0, 0
  for item, record in zip(
    perplexity.items(perplexity.Options(files=str(texts[0]), **settings), subject),
    results["items"],
    strict=True,
  ):
    tokens, start = item.query.tokens, item.query.start
    long = naive_log_p(tokens)
    keys = []
    begin = max(start, len(head) + short + 1)
    for i in range(begin, length):
      before = short + (i - begin) % (short // 4)  # a pass scores a quarter
      own = naive_log_p([*head, *tokens[i - before : i + 1]])[-1]
      gained += long[i - 1] - own > 0.1
      if long[i - 1] - own > 0.1 and long[i - 1] > -6:
        keys.append(-long[i - 1])
    scored += length - begin
    assert record["key_tokens"] == len(keys)
    assert record["key_nll"] == pytest.approx(sum(keys), rel=1e-4)
  keys = sum(record["key_tokens"] for record in results["items"])
  assert 0 < keys < gained < scored  # both conditions matter
  nll = sum(record["key_nll"] for record in results["items"])
  assert results["summary"]["longppl"] == pytest.approx(math.exp(nll / keys))
  assert results["summary"]["key_tokens"] == keys


def test_no_key_tokens_no_longppl(texts, tmp_path):
  results = run(tmp_path, texts, length=30, longppl=True, short=8, alpha=99.0)
  assert results["summary"]["longppl"] is None
  assert results["summary"]["key_tokens"] == 0


def test_a_file_in_two_spellings_is_read_once(texts, tmp_path):
  one = texts[0]
  again = one.parent / "." / ".." / one.parent.name / one.name
  found = haystack.read_files("files", f"{one},{again}")
  assert list(found) == [str(one)]


def test_a_text_is_the_same_wherever_it_was_written(tmp_path):
  """As training reads it: line breaks of Windows and a byte order mark are no text."""
  path = tmp_path / "a.txt"
  path.write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\r\n")
  (text,) = haystack.read_files("files", str(path)).values()
  assert [{"text": text}] == [
    record for _, record in sources.Source(str(path)).records()
  ]
  assert text == "One.\nTwo.\n"


def test_small_batches_change_nothing(texts, tmp_path):
  small = tiny_subject.make(batch_tokens=40)
  settings = dict(length=40, documents=2, longppl=True, short=8, alpha=0.1, beta=-6.0)
  one = run(tmp_path / "a", texts, **settings)["summary"]
  other = run(tmp_path / "b", texts, small, **settings)["summary"]
  assert one["key_tokens"] == other["key_tokens"]
  assert one["longppl"] == pytest.approx(other["longppl"])
  assert one["perplexity"] == pytest.approx(other["perplexity"])


def test_a_short_file_has_fewer_windows(texts, tmp_path):
  results = run(tmp_path, texts, length=48, documents=3)
  assert results["summary"]["windows"] == {str(texts[0]): 3, str(texts[1]): 2}
  assert [record["first"] for record in results["items"]] == [0, 48, 96, 0, 48]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(files=""), "--files is needed"),
    (dict(files="nowhere.txt"), "--files: nowhere.txt cannot be read"),
    (dict(length=151), "150 tokens.*--length=151"),
    (dict(length=1), "no tokens to score"),
    (dict(length=-5), "no tokens to score"),
    (dict(documents=0), "--documents=0 must be at least 1"),
    (dict(stride=-1), "--stride=-1"),
    (dict(length=20, stride=20), "less than the 20 tokens"),
    (dict(bucket=-1), "--bucket=-1"),
    (dict(alpha=float("nan")), "--alpha=nan .* must be finite"),
    (dict(beta=float("-inf")), "--beta=-inf must be finite"),
    (dict(short=64), "--short=64 has no effect without --longppl=True"),
    (dict(beta=-3.0), "--beta=-3.0 has no effect without"),
    (dict(length=20, longppl=True, short=0), "--short=0"),
    (dict(length=20, longppl=True, short=19), "--short=19"),
  ],
)
def test_refused(texts, options, message):
  options = dict(files=str(texts[0])) | options
  with pytest.raises(errors.UserError, match=message):
    perplexity.items(perplexity.Options(**options), SUBJECT)


@pytest.mark.parametrize(
  ("name", "data"),
  [("empty.txt", b" \n"), ("bad.txt", b"\xff\xfe"), ("x.txt.gz", b"no")],
)
def test_unreadable_files_are_refused(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.UserError, match=f"--files: .*{name}"):
    perplexity.items(perplexity.Options(files=str(tmp_path / name)), SUBJECT)
