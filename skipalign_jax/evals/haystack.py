"""Long text with needles in it: files or generated sentences, cut to exact tokens."""

import bisect
import functools
import re
from collections.abc import Sequence

import numpy as np

from skipalign_jax.data import tokenization
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors, paths, untrusted

SUBJECTS = (
  "the ferry", "a tall clerk", "the baker", "her neighbour", "the old bridge",
  "a quiet student", "the night train", "their gardener", "the museum", "a red kite",
  "the harbour", "my cousin", "the choir", "a small bakery", "the lighthouse",
  "an engineer",
)  # fmt: skip
VERBS = (
  "waited for", "wrote about", "walked past", "painted", "remembered", "repaired",
  "looked after", "talked about", "sold", "carried", "described", "counted",
  "photographed", "searched for", "praised", "avoided",
)  # fmt: skip
OBJECTS = (
  "the morning market", "a broken clock", "three letters", "the northern road",
  "an empty house", "the winter garden", "a box of maps", "the new library",
  "some wet umbrellas", "the long meeting", "a bowl of plums", "the last tram",
  "an unfinished song", "the school choir", "a pair of boots", "the stone stairs",
)  # fmt: skip
ENDINGS = (
  "before the rain", "without a word", "on the way home", "every second week",
  "as the bells rang", "in the afternoon", "until it was dark", "for a good reason",
  "while others slept", "with great care", "near the river", "after the holidays",
)  # fmt: skip
# No word contains another one, and no two joined words contain two other joined words.
PARTS = (
  "amber", "apple", "arrow", "basil", "beach", "bell", "birch", "bird", "bone", "book",
  "bread", "brick", "bridge", "brush", "cabin", "candle", "castle", "cedar", "chalk",
  "cloud", "clover", "coal", "copper", "coral", "corn", "cotton", "creek", "crown",
  "daisy", "desk", "dove", "drum", "eagle", "feather", "fern", "field", "finch",
  "fish", "flag", "flint", "flower", "forest", "fox", "frost", "garden", "gate",
  "ginger", "glass", "goat", "gold", "grape", "grass", "hammer", "hawk", "hazel",
  "hill", "honey", "iron", "island", "ivory", "jade", "jewel", "kettle",
  "kite", "lake", "lamp", "lantern", "leaf", "lemon", "lily", "linen", "lion", "lock",
  "maple", "marble", "meadow", "melon", "mill", "mint", "moon", "moss", "moth",
  "night", "ocean", "olive", "onion", "orchard", "paper", "pearl", "pebble", "petal",
  "pine", "plum", "pond", "poppy", "quill", "rabbit", "raven", "ribbon", "river",
  "robin", "rock", "root", "rope", "ruby", "saddle", "sage", "salt", "sand", "seed",
  "shell", "silk", "silver", "snow", "spark", "spring", "stone", "storm", "straw",
  "stream", "sugar", "summer", "swan", "table", "thistle", "thorn", "thunder", "tide",
  "tiger", "timber", "tower", "tulip", "turtle", "valley", "velvet", "village", "vine",
  "violet", "wagon", "walnut", "water", "wheel", "willow", "winter", "wolf", "wood",
  "wool",
)  # fmt: skip

MAX_MORE = 64  # characters after the last whole token of a haystack
MAX_BACK = 512  # tokens from the depth of a needle back to a full stop
# Full stops without white space after them: Chinese and Japanese, Hindi, Urdu, Amharic.
STOPS = "。｡।۔።"


def sentences(count: int, seed: int | Sequence[int]) -> str:
  """Plain English sentences without facts; there are 49,152 different ones."""
  rng = np.random.default_rng(seed)
  parts = (SUBJECTS, VERBS, OBJECTS, ENDINGS)
  picked = [rng.integers(len(part), size=count) for part in parts]
  lines = []
  for row in zip(*picked, strict=True):
    words = " ".join(part[i] for part, i in zip(parts, row, strict=True))
    lines.append(words[0].upper() + words[1:] + ".")
  return " ".join(lines)


def words(count: int, rng: np.random.Generator) -> list[str]:
  """Different words, none a part of another: one, two or three nouns joined.

  As few nouns per word as suffice: there are 147 nouns, 21,000 pairs and millions of
  triples.
  """
  n = len(PARTS)
  parts = 1 if count <= n else 2 if count <= n * (n - 1) else 3
  found: dict[str, None] = {}
  while len(found) < count:
    for row in rng.integers(n, size=(count, parts)):
      if len(set(row)) == parts:
        found["".join(PARTS[i] for i in row)] = None
  return list(found)[:count]


def read(files: str) -> str:
  """The texts of .txt or .txt.gz files (commas between them), joined.

  Raises:
    UserError: a file is missing, empty or not UTF-8 text.
  """
  return "\n\n".join(read_files("haystack", files).values())


def read_files(flag: str, files: str) -> dict[str, str]:
  """File name → text of .txt or .txt.gz files, commas between them.

  Args:
    flag: the option that names the files, for error messages.
    files: a file that is named twice, in any spelling, is read once.

  Raises:
    UserError: a file is missing, empty or not UTF-8 text.
  """
  texts, places = {}, set()
  for name in map(str.strip, files.split(",")):
    path = paths.given(name, f"--{flag}={name}")
    if path.resolve() in places:
      continue
    places.add(path.resolve())
    try:
      text = untrusted.read_text(path)  # as training reads it
    except untrusted.BROKEN as error:
      raise errors.UserError(f"--{flag}: {path} cannot be read: {error}") from error
    if not text.strip():
      raise errors.UserError(f"--{flag}: {path} is empty")
    texts[name] = text
  return texts


class Haystack:
  """Text as tokens, of any length; it starts again where it ends."""

  def __init__(
    self,
    subject: subject_lib.Subject,
    files: str,
    seed: int | Sequence[int],
    begin: float = 0.0,
  ):
    """Reads the files.

    Args:
      subject: whose tokens count.
      files: .txt or .txt.gz, commas between them; empty for generated text.
      seed: of generated text.
      begin: the text of files starts with the first sentence after this fraction.
    """
    self._subject = subject
    self._seed = seed
    self._text = text = read(files) if files else ""
    if text and begin:
      at = int(begin * len(text))
      stop = re.compile(rf"\.\s+|[{STOPS}]\s*").search(text, at)
      at = stop.end() if stop else at
      self._text = f"{text[at:]}\n\n{text[:at]}"

  def cut(self, tokens: int) -> tuple[str, list[int]]:
    """The text of the first tokens, and the places right after a full stop in it.

    Returns:
      Text, and indices of its characters in ascending order; 0 is always among them.
    """
    text, ends, stops = self._tokenized(1 << (tokens - 1).bit_length())
    end = ends[tokens]
    return text[:end], stops[: bisect.bisect_right(stops, end)]

  def with_needles(
    self, tokens: int, needles: Sequence[tuple[float, str]], more: int = 0
  ) -> str:
    """The text of the first tokens, with needles in it.

    Args:
      tokens: how many, without the needles.
      needles: (depth, text) with depths in ascending order. A needle goes to
        depth · tokens and from there back to the last full stop; at depth 1 it is put
        at the end.
      more: characters of the haystack after these tokens.

    Raises:
      UserError: there is no full stop in the `MAX_BACK` tokens before a depth.
    """
    text, ends, stops = self._tokenized(1 << (tokens - 1).bit_length())
    last = ends[tokens] + more
    found, done = "", 0
    for depth, needle in needles:
      place = int(depth * tokens)
      at = last if depth == 1 else stops[bisect.bisect_right(stops, ends[place]) - 1]
      if depth < 1 and place - bisect.bisect_left(ends, at) > MAX_BACK:
        raise errors.UserError(
          f"--haystack: the text has no full stop in the {MAX_BACK} tokens before "
          f"depth {depth:g}, and needles go back to one; name a text with sentences"
        )
      found += text[done:at]
      # A text that ends with a space needs no other one before the needle.
      found += needle.lstrip() if depth == 1 and found[-1:].isspace() else needle
      done = at
    return found + text[done:last]

  def fill(
    self,
    length: int,
    head: str,
    needles: Sequence[tuple[float, str]],
    tail: str,
    chat: bool,
  ) -> tuple[str, list[int]]:
    """Text with needles, as long as a prompt of `length` tokens needs it.

    Args:
      length: of the whole prompt, in tokens.
      head: the text before.
      needles: as in `with_needles`.
      tail: the text after.
      chat: as in `Subject.encode_prompt`.

    Returns:
      The text between head and tail, and the tokens of the whole prompt: `length`, or
      the next smaller number that a cut of the text gives (a character may have
      several tokens).

    Raises:
      UserError: the prompt is too long without any other text, or as `with_needles`.
    """
    found: dict[tuple[int, int], tuple[str, list[int]]] = {}

    def missing(tokens: int, more: int = 0) -> int:
      text = self.with_needles(tokens, needles, more)
      ids, _ = self._subject.encode_prompt(head + text + tail, chat)
      found[tokens, more] = text, ids
      return length - len(ids)

    if (lacks := missing(0)) < 0:
      raise errors.UserError(
        f"--lengths={length}: the prompt without other text has {length - lacks} tokens"
      )
    apart = [self._subject.encode(part) for part in (tail, *(x for _, x in needles))]
    apart.append(self._subject.encode(head, special=not chat))
    tokens = max(0, length - sum(map(len, apart))) if lacks else 0
    while lacks and (tokens, 0) not in found:
      lacks = missing(tokens)
      tokens = max(0, tokens + lacks)
    if not lacks:
      return found[tokens, 0]
    # Tokens merge where texts meet: try cuts inside of tokens.
    tokens = max(n for n, _ in found if len(found[n, 0][1]) <= length)
    for more in range(1, MAX_MORE):
      if missing(tokens, more) == 0:
        return found[tokens, more]
    fits = [pair for pair in found.values() if len(pair[1]) <= length]
    return max(fits, key=lambda pair: len(pair[1]))

  @functools.cache  # noqa: B019 (lives as long as one evaluation)
  def _tokenized(self, tokens: int) -> tuple[str, list[int], list[int]]:
    """A text, where its first n tokens end (n = 0, 1, …), and places after stops."""
    characters = 8 * tokens  # more than most texts need
    while True:
      text = self._text or sentences(characters // 40, self._seed)
      while len(text) < characters + MAX_MORE:
        text += "\n\n" + text
      tokenizer = self._subject.tokenizer
      (found,) = tokenization.of_texts(tokenizer, [text[:characters]], literal=True)
      if len(found.ids) >= tokens:
        break
      characters *= 2
    ends = [0, *found.places[:, 1].tolist()]
    stops = [
      n
      for n in ends
      if n and (text[n - 1] in STOPS or (text[n - 1] == "." and text[n].isspace()))
    ]
    return text, ends, [0, *stops]


def of_samples(
  subject: subject_lib.Subject, files: str, seed: int, samples: int, own_pages: bool
) -> list[Haystack]:
  """One haystack per sample: the same for all, or with a different beginning each.

  With own pages sample i of n begins after the fraction i/n of the files (so that
  samples of a short text overlap), and each sample has its own generated text.
  """
  if not own_pages:
    return [Haystack(subject, files, seed)] * samples
  return [Haystack(subject, files, (seed, i), i / samples) for i in range(samples)]
