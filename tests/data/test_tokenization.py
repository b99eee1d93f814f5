"""Long texts are encoded in parts, and have the tokens of the whole text."""

import random

import hypothesis
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

from skipalign_jax.data import cuts, tokenization
from skipalign_jax.data import tokenizer as tokenizer_lib

LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
  r"(?i:'s|'t)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{M}]*|"
  r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = "the cat sat on 12345 mats, aaaa aab! It's   a\n\n\ttest_1 été 日本 ABCdef ▁x"
SPECIAL = ["<unk>", "<s>", "</s>"]


def learned(backend, trainer):
  """With merges or pieces of a text like those of the tests."""
  rng = random.Random(0)
  words = WORDS.split(" ")
  lines = [" ".join(rng.choices(words, k=20)) for _ in range(50)]
  lines += ["a" * 64, "ab" * 32, " " * 40, "1234567890" * 5, "=-" * 30]
  backend.train_from_iterator(lines, trainer)
  return backend


def byte_pairs(normalizer=None, pre_tokenizer=None, bytes_first=True, **model):
  backend = tokenizers.Tokenizer(models.BPE(**model))
  if normalizer:
    backend.normalizer = normalizer
  if pre_tokenizer:
    backend.pre_tokenizer = pre_tokenizer
  alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_first else []
  return learned(
    backend,
    trainers.BpeTrainer(
      vocab_size=420,
      special_tokens=SPECIAL,
      initial_alphabet=sorted(alphabet),
      max_token_length=12,
      show_progress=False,
    ),
  )


def byte_level(*before, use_regex=False, **options):
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
  return byte_pairs(pre_tokenizer=pre_tokenizers.Sequence([*before, level]), **options)


def split(pattern):
  return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def llama2():
  marks = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  return byte_pairs(marks, bytes_first=False, unk_token="<unk>", fuse_unk=True)


def metaspace(scheme):
  pre = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  return byte_pairs(pre_tokenizer=pre, bytes_first=False, unk_token="<unk>")


def gemma():
  return byte_pairs(
    normalizers.Replace(" ", "▁"),
    pre_tokenizers.Split(" ", behavior="merged_with_previous"),
    bytes_first=False,
    unk_token="<unk>",
  )


def unigram():
  backend = tokenizers.Tokenizer(models.Unigram())
  backend.normalizer = normalizers.NFKC()
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.UnigramTrainer(
    vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
  )
  return learned(backend, trainer)


def wordpiece():
  backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
  backend.normalizer = normalizers.BertNormalizer()
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trainer = trainers.WordPieceTrainer(
    vocab_size=150, special_tokens=SPECIAL, show_progress=False
  )
  return learned(backend, trainer)


def trimmed():
  backend = byte_level(use_regex=True)
  backend.post_processor = processors.ByteLevel(trim_offsets=True)
  return backend


digits = pre_tokenizers.Digits(individual_digits=True)
KINDS = {
  "bytes": lambda: tokenizer_lib.byte_tokenizer().backend_tokenizer,
  "gpt2": lambda: byte_level(use_regex=True),
  "gpt2, trimmed": trimmed,
  "smollm": lambda: byte_level(digits, use_regex=True),
  "llama3": lambda: byte_level(split(LLAMA3), ignore_merges=True),
  "qwen2": lambda: byte_level(
    split(LLAMA3.replace("{1,3}", "")), normalizer=normalizers.NFC()
  ),
  "o200k": lambda: byte_level(split(O200K)),
  "one word": byte_level,
  "three digits": lambda: byte_level(split("[0-9][0-9][0-9]"), digits),
  "seven characters": lambda: byte_level(pre_tokenizers.FixedLength(7)),
  "llama2": llama2,
  "metaspace, first": lambda: metaspace("first"),
  "metaspace, always": lambda: metaspace("always"),
  "gemma": gemma,
  "unigram": unigram,
  "wordpiece": wordpiece,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
  made = transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param]())
  made.kind = request.param
  made.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
  made.add_tokens([tokenizers.AddedToken("<tool>", lstrip=True, rstrip=True)])
  return made


@pytest.fixture(autouse=True)
def short(monkeypatch):
  """Parts of some words."""
  cuts._rules.cache_clear()
  monkeypatch.setattr(cuts, "LEAST_MARGIN", 8)
  monkeypatch.setattr(tokenization, "_PART", 64)
  monkeypatch.setattr(tokenization, "_TOGETHER", 200)
  yield
  cuts._rules.cache_clear()


def expected(tokenizer, text, literal):
  """Tokens, and their places with all spaces, which a post-processor may leave out."""
  backend = tokenizer.backend_tokenizer
  own, backend.post_processor = backend.post_processor, None
  found = tokenizer(
    text,
    add_special_tokens=False,
    return_offsets_mapping=True,
    split_special_tokens=literal,
  )
  backend.post_processor = own
  return found["input_ids"], found["offset_mapping"]


WHOLE = [*WORDS.split(" "), *SPECIAL, "<|im_end|>", "<tool>", "e\u0301", "👩\u200d👧"]
SPACES = (" ", "  ", "\n", "", "\r\n\r\n")
REPEATED = (*"a1 \n=é日▁bA'", "ab", "12", " a", "=-", "\r\n")


def drawn(integer, most=150):
  """A text of words, spaces and repetitions; `integer` draws from 0 to a number."""
  pieces = []
  for _ in range(integer(most)):
    piece = WHOLE[integer(len(WHOLE) - 1)]
    if integer(5) == 5:
      piece = REPEATED[integer(len(REPEATED) - 1)] * integer(150)
    pieces += [piece, SPACES[integer(len(SPACES) - 1)]]
  return "".join(pieces)


def check(tokenizer, texts, literal):
  found = tokenization.parts(tokenizer, texts, literal)
  for text, some in zip(texts, found, strict=True):
    tokens = tokenization.whole(some)
    ids, places = expected(tokenizer, text, literal)
    assert tokens.ids.tolist() == ids
    assert list(map(tuple, tokens.places.tolist())) == places


def test_parts_have_the_tokens_of_the_whole(tokenizer):
  rng = random.Random(2)
  for literal in (True, False):
    check(tokenizer, [drawn(lambda n: rng.randint(0, n)) for _ in range(6)], literal)


@pytest.mark.slow
@hypothesis.settings(
  max_examples=100,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data(), literal=st.booleans())
def test_parts_of_any_text_have_the_tokens_of_the_whole(tokenizer, data, literal):
  """Of some hundred characters: hypothesis draws longer texts over and over."""
  integer = lambda n: data.draw(st.integers(0, n))
  check(tokenizer, [drawn(integer, most=25)], literal)


def test_ordinary_text_is_cut(tokenizer):
  """Into parts that are not much longer than they should be.

  Where words have seven characters from the beginning on, longer parts are needed.
  """
  rng = random.Random(1)
  text = " ".join(rng.choices(WORDS.split(" "), k=4000))
  overlap = 4 * cuts.rules_of(tokenizer).margin
  some = next(tokenization.parts(tokenizer, [text]))
  *places, last = (one.places for one in some)
  assert len(places) > len(text) / max(64, 2 * overlap) / 4
  assert max(one[-1, 1] - one[0, 0] for one in places) <= 40 * overlap
  ids, _ = expected(tokenizer, text, False)
  assert sum(map(len, places)) + len(last) == len(ids)


@pytest.mark.parametrize(
  ("pattern", "far"),
  [
    (LLAMA3, False),
    (O200K, False),
    (r" ?[^(\s|[.,!?…。，、।۔،])]+", False),
    (r"[^\s]+|\s+", False),
    ('"[^"]*"', True),
    (".*", True),
    (".{3}", False),
    (r"\.+", False),
    (r"\D+\d", True),
    (r"\P{L}+x", True),
    (r"(?:ab)+", True),
    (r"(a)\1", True),
    (r"[^\]]*\]", True),
    (r"a{2,}", False),
    (r".{2,}b", True),
  ],
)
def test_which_patterns_look_far(pattern, far):
  assert cuts.looks_far(pattern) is far


def test_a_tokenizer_that_looks_far_encodes_a_text_whole_or_not_at_all(monkeypatch):
  backend = byte_level(split('"[^"]*"|[a-z]+'))
  made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  monkeypatch.setattr(tokenization, "_MAX_PART", 1000)
  quotation = 'a "' + "word " * 100 + '" b'
  texts = [quotation, "x" * 1001, quotation]
  found = []
  for text, some in zip(texts, tokenization.parts(made, texts), strict=True):
    if len(text) > 1000:
      with pytest.raises(tokenization.UncutError, match=r"'xxx.*1,001 char.*shorter"):
        tokenization.whole(some)
    else:
      found.append(tokenization.whole(some).ids.tolist())
  assert found == [expected(made, quotation, False)[0]] * 2
