"""Sentences of books: where they end, runs of words, other sentences between them."""

import gzip

import pytest

from skipalign_jax.evals import books
from skipalign_jax.runtime import errors

TEXT = """Mr. Gray came
in.  "Is it late?" she asked.  J. Reed said (it was two o'clock.)  Then they
left for St. Ives!  The end"""
SENTENCES = [
  "Mr. Gray came in.",
  '"Is it late?"',
  "she asked.",
  "J. Reed said (it was two o'clock.)",
  "Then they left for St. Ives!",
  "The end",
]


def test_sentences_end_at_full_stops_that_are_not_abbreviations():
  assert books.split(TEXT) == SENTENCES
  assert books.split("One. Two.") == ["One.", "Two."]


@pytest.fixture
def book(tmp_path):
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
  return books.read(str(tmp_path / "a.txt.gz"))


def test_runs_of_words_begin_at_a_sentence_and_go_on_at_the_first(book):
  assert book.words(0, 4) == SENTENCES[:1]
  assert book.words(1, 6) == ['"Is it late?"', "she asked.", "J."]
  assert book.words(5, 5) == ["The end", "Mr. Gray came"]
  many = " ".join(book.words(3, 1000)).split()
  assert len(many) == 1000
  whole = TEXT.split()
  start = " ".join(SENTENCES[:3]).count(" ") + 1
  assert many == [whole[(start + i) % len(whole)] for i in range(1000)]


def test_others_stand_before_the_sentences_of_their_places():
  found = books.put_between(["a", "b", "c"], ["1", "2", "3", "4"], [0, 2, 2, 3])
  assert found == ["1", "a", "b", "2", "3", "c", "4"]


def test_a_missing_or_empty_book_is_refused(tmp_path):
  (tmp_path / "empty.txt").write_text(" \n")
  for name in ("none.txt", "empty.txt"):
    with pytest.raises(errors.UserError, match=f"haystack.*{name}"):
      books.read(str(tmp_path / name))
  with pytest.raises(errors.UserError, match="--haystack=FILES is needed"):
    books.read("")


@pytest.mark.parametrize(
  "text", ["def f(x):\n  return x + 1\n", "天气很好。我们去公园。"]
)
def test_a_text_without_sentences_is_refused(text, tmp_path):
  """Nothing could be put between them but at both ends."""
  (tmp_path / "a.txt").write_text(text * 200, "utf-8")
  with pytest.raises(errors.UserError, match=r"a\.txt: 1 sentences in .*full stop"):
    books.read(str(tmp_path / "a.txt"))
