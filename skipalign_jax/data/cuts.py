"""Where the tokens of two parts of a text can be joined: what a tokenizer guarantees.

Two parts of a text overlap. Each has right tokens except near an end that is not one of
the text, where a tokenizer does not see what follows or what comes before. If both have
the same tokens in the middle of what they share, the left part's tokens up to a place
there and the right part's after it are those of the whole text:

* A pre-tokenizer cuts a text into words from left to right, by classes of characters or
  by runs of them. After the end of a word its rule starts anew.
* Byte pair encoding has a border between tokens where the tokens on its two sides do
  not merge if they are encoded together: merges are made in the order of their ranks,
  and those on one side of a border do not change those on the other. The left part
  shows that the two tokens do not merge.
* Unigram models and WordPiece choose all tokens of a word together. Only the beginning
  of a word is such a place.

A tokenizer whose rules may look further has no such places.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  import transformers

LEAST_MARGIN = 256  # characters
_LONGEST_TOKEN = 1 << 12  # characters
_ANYWHERE = ("BPE",)  # models whose tokens of a word can be joined
_AT_WORDS = ("Unigram", "WordPiece", "WordLevel")
# Normalizers and pre-tokenizers that look at neighbours only.
_LOCAL = frozenset(
  "BertNormalizer BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength "
  "Lowercase Metaspace NFC NFD NFKC NFKD Nmt Precompiled Prepend Punctuation Replace "
  "Sequence Split Strip StripAccents UnicodeScripts Whitespace WhitespaceSplit".split()
)
# Parts of a regular expression: an escaped character, a class, or a character.
_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|\[[^\]]*\]|[^\]\\\[])*\]|.", re.DOTALL)
_UNBOUNDED = re.compile(r"[*+]|\{\d+,\}")


class Rules(NamedTuple):
  """Where tokens of a tokenizer can be joined.

  Attributes:
    margin: characters at the end of a part whose tokens may be others in the whole
      text; None if there is no such number.
    at_words: only before the first token of a word.
  """

  margin: int | None
  at_words: bool


def rules_of(tokenizer: transformers.PreTrainedTokenizerFast) -> Rules:
  """The rules of a fast tokenizer."""
  return _rules(tokenizer, len(tokenizer))  # tokens can be added to it


@functools.lru_cache(maxsize=4)
def _rules(tokenizer: transformers.PreTrainedTokenizerFast, size: int) -> Rules:
  del size
  backend = tokenizer.backend_tokenizer
  kind = type(backend.model).__name__
  if kind not in (*_ANYWHERE, *_AT_WORDS) or getattr(backend.model, "dropout", None):
    return Rules(None, True)
  longest = max(map(len, tokenizer.get_vocab()), default=0)
  local = all(map(_is_local, (backend.normalizer, backend.pre_tokenizer)))
  if longest > _LONGEST_TOKEN or not local:
    return Rules(None, True)
  return Rules(max(LEAST_MARGIN, 2 * longest), kind in _AT_WORDS)


def _is_local(component: Any) -> bool:
  """Whether a normalizer or pre-tokenizer looks at neighbours only."""
  if component is None:
    return True
  try:
    state = json.loads(component.__getstate__())
  except Exception:  # one that is written in Python has no state
    return False
  parts = list(_parts(state))
  return all(part["type"] in _LOCAL and not looks_far(_pattern(part)) for part in parts)


def _parts(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
  yield state
  for key in ("normalizers", "pretokenizers"):
    for part in state.get(key) or ():
      yield from _parts(part)


def _pattern(part: dict[str, Any]) -> str:
  """The regular expression of a component; "" if it has none."""
  pattern = part.get("pattern")
  return pattern.get("Regex", "") if isinstance(pattern, dict) else ""


def looks_far(pattern: str) -> bool:
  """Whether what a regular expression matches may depend on any later character.

  As with a quotation, which needs its end: any number of characters of a set that
  ordinary text is made of, or of a group.
  """
  atoms = _ATOM.findall(pattern)
  for i, atom in enumerate(atoms):
    rest = "".join(atoms[i + 1 : i + 5])
    if not _UNBOUNDED.match(rest):
      continue
    is_negated = atom.startswith("[^") and not re.search(r"\\s|\\p\{L\}", atom)
    if atom in (".", ")", r"\D", r"\W", r"\P", r"\X") or is_negated:
      return True
    if atom == "}" and re.search(r"\\P\{[^{}]*\}$", "".join(atoms[: i + 1])):
      return True
  return bool(re.search(r"\\[1-9]|\\[kgG]", pattern))
