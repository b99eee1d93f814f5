"""The study's language: filler words, facts, and two formats of questions.

A fact is one word, `k12=v3`: key 12 has value 3. Around facts there is filler, a Markov
chain with four successors per word. Questions have two formats:

  text, in pretraining:            … k12=v3 … Q k12 v3 … Q k12 A k12 v3 …
  chat, in SFT only:               <|user|> … k12=v3 … ask k12
                                   <|assistant|> k12 v3 <|end|>

A question in the chat format may be about several facts: ask k12 k7, k12 v3 k7 v0.

Everything is a pure function of (seed, kind of text, number), so no two seeds, and no
training set and test set of a seed, share a draw. Each seed has its own filler chain.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

KEYS, VALUES, FILLERS, SUCCESSORS = 64, 8, 32, 4
SPECIAL = ("<|pad|>", "<|unk|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
  "{% for message in messages %}"
  "{{ '<|' + message['role'] + '|> ' + message['content'] }}"
  "{% if message['role'] == 'assistant' %}{{ ' <|end|>' }}{% endif %}"
  "{{ '\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)

# Purposes of random generators: the second number of their seeds.
CHAIN, TEXT, DIALOGUE, TEST, VALIDATION = range(5)

Words = list[str]


def vocabulary() -> Words:
  """All words; the index of a word is its token id."""
  facts = [fact(k, v) for k in range(KEYS) for v in range(VALUES)]
  keys, values = map(key, range(KEYS)), map(value, range(VALUES))
  return [*SPECIAL, "Q", "A", "ask", "ok", *map(filler, range(FILLERS)), *keys, *values,
          *facts]  # fmt: skip


def key(k: int) -> str:
  return f"k{k}"


def value(v: int) -> str:
  return f"v{v}"


def filler(w: int) -> str:
  return f"w{w}"


def fact(k: int, v: int) -> str:
  return f"k{k}=v{v}"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
  """One token per word, with the chat template."""
  vocab = {word: i for i, word in enumerate(vocabulary())}
  backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token="<|pad|>",
    unk_token="<|unk|>",
    eos_token="<|eos|>",
    additional_special_tokens=["<|user|>", "<|assistant|>", "<|end|>"],
    clean_up_tokenization_spaces=False,
  )
  made.chat_template = TEMPLATE
  return made


@functools.lru_cache
def chain(seed: int) -> np.ndarray:
  """[FILLERS, SUCCESSORS]: the words that may follow each word, equally likely."""
  rng = np.random.default_rng((seed, CHAIN))
  return np.stack([rng.permutation(FILLERS)[:SUCCESSORS] for _ in range(FILLERS)])


def walk(seed: int, rng: np.random.Generator, count: int) -> Words:
  """`count` words of filler."""
  after, word = chain(seed), int(rng.integers(FILLERS))
  found = []
  for choice in rng.integers(SUCCESSORS, size=count):
    found.append(filler(word))
    word = int(after[word, choice])
  return found


def draw_facts(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
  """(key, value) of `count` facts with different keys."""
  keys = rng.permutation(KEYS)[:count]
  return list(
    zip(keys.tolist(), rng.integers(VALUES, size=count).tolist(), strict=True)
  )


def question(facts: Sequence[tuple[int, int]]) -> Words:
  """A question about these facts in the chat format."""
  return ["ask", *(key(k) for k, _ in facts)]


def answer(facts: Sequence[tuple[int, int]]) -> Words:
  """The reply: each key and its value."""
  return [word for k, v in facts for word in (key(k), value(v))]


def insert(words: Words, rng: np.random.Generator, parts: Sequence[Words]) -> Words:
  """Puts `parts`, in their order, at random places between `words`."""
  places = np.sort(rng.integers(len(words) + 1, size=len(parts)))
  found, done = [], 0
  for place, part in zip(places.tolist(), parts, strict=True):
    found += words[done:place] + part
    done = place
  return found + words[done:]


def text(seed: int, number: int, length: int, copies: bool, kind: int = TEXT) -> str:
  """A document of `length` words: facts, and later questions with their answers.

  If `copies`, half of the answers repeat the key.
  """
  rng = np.random.default_rng((seed, kind, length, number))
  facts = draw_facts(rng, max(2, length // 10))
  stated, parts = 0, []
  order = rng.permutation([True] * (len(facts) - 1) + [False] * len(facts))
  for is_fact in [True, *order.tolist()]:
    if is_fact:
      parts.append([fact(*facts[stated])])
      stated += 1
    else:
      k, v = facts[rng.integers(stated)]
      again = ["A", key(k)] if copies and rng.integers(2) else []
      parts.append(["Q", key(k), *again, value(v)])
  fillers = walk(seed, rng, length - sum(map(len, parts)))
  return " ".join(insert(fillers, rng, parts))


def dialogue(
  seed: int, number: int, length: int, kind: int = DIALOGUE, per_question: int = 1
) -> list[dict[str, str]]:
  """Messages of a chat of at most `length` tokens, about 16 per turn.

  Each turn except the first ends with a question about `per_question` facts, which are
  stated in that user turn or earlier; no other question is about them, and as many
  facts have no question. The reply repeats each key before its value.
  """
  rng = np.random.default_rng((seed, kind, length, number))
  typical = max(4 - per_question, length // (16 + 4 * per_question))
  turns = min(int(rng.integers(typical, typical + 3)), KEYS // per_question)
  facts = draw_facts(rng, turns * per_question)
  when = [int(rng.integers(i // per_question + 1)) for i in range(len(facts))]
  # The other words of a turn: <|user|> … ask k <|assistant|> k v <|end|>.
  room = length - (4 + 3 * per_question) * turns - len(facts)
  shares = np.diff(
    np.sort(rng.integers(room + 1, size=turns - 1)), prepend=0, append=room
  )
  messages = []
  for turn, share in enumerate(shares.tolist()):
    new = [[fact(*f)] for f, at in zip(facts, when, strict=True) if at == turn]
    words = insert(walk(seed, rng, max(share, 1)), rng, new)
    wanted = facts[turn * per_question : (turn + 1) * per_question]
    asks, reply = question(wanted), answer(wanted)
    if not turn:
      asks, reply = [], ["ok"]
    messages.append({"role": "user", "content": " ".join(words + asks)})
    messages.append({"role": "assistant", "content": " ".join(reply)})
  return messages


QUESTIONS, DISTRACTORS = 3, 1  # per haystack; distractors: facts without a question


@dataclasses.dataclass(frozen=True)
class Haystack:
  """Filler with facts in it, then questions about them, one after the other.

  Attributes:
    words: all of it, with control words and the right answers.
    answers: (first word, end) of each answer in `words`.
    depths: position of the (farthest) fact of each question in the filler, 0 (first)
      to 1.
  """

  words: Words
  answers: list[tuple[int, int]]
  depths: list[float]


def haystack(
  seed: int, number: int, kind: int, form: str, length: int, per_question: int = 1
) -> Haystack:
  """One haystack.

  Args:
    seed: of the model that is evaluated.
    number: of the haystack.
    kind: TEST or VALIDATION.
    form: "chat" or "text".
    length: of the whole haystack, in words.
    per_question: facts per question; 1 in texts.
  """
  is_chat = form == "chat"
  rng = np.random.default_rng((seed, kind, is_chat, length, number))
  facts = draw_facts(rng, QUESTIONS * per_question + DISTRACTORS)
  wanted = [facts[i * per_question : (i + 1) * per_question] for i in range(QUESTIONS)]
  front, tail, answers = ["<|user|>"] if is_chat else [], [], []
  for i, about in enumerate(wanted):
    if is_chat:
      again = [] if i == 0 else ["<|end|>", "<|user|>", *walk(seed, rng, 1)]
      tail += [*again, *question(about), "<|assistant|>"]
    else:
      tail += ["Q", key(about[0][0]), "A"]
    answers.append((len(tail), len(tail) + 2 * per_question))
    tail += answer(about)
  room = length - len(front) - len(tail)
  stated = [[fact(*facts[i])] for i in rng.permutation(len(facts))]
  hay = insert(walk(seed, rng, room - len(stated)), rng, stated)
  before = len(front) + room
  return Haystack(
    words=front + hay + tail,
    answers=[(before + start, before + end) for start, end in answers],
    depths=[min(hay.index(fact(*f)) for f in about) / (room - 1) for about in wanted],
  )
