"""Text from a model: padding, stops, sampling and streaming."""

import functools
import gc
import logging
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_subject
import tokenizers
import transformers
from tokenizers import decoders, processors

from skipalign_jax import generate as skipalign_jax_generate
from skipalign_jax.commands import generate, text_stream
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import export, reference
from skipalign_jax.model import backends, inference
from skipalign_jax.runtime import errors, files

CONFIG = tiny.config()
PARAMS = tiny.params(CONFIG)
PROMPTS = [[5, 9, 30, 2, 2, 17], [11], [8, 1, 39]]
NEW = 6


ENGINE = inference.Engine(PARAMS, CONFIG, "float32")


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 8)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)


def replies(prompts, stop_ids=(), **options):
  return list(ENGINE.generate(prompts, NEW, stop_ids=stop_ids, **options))


@pytest.fixture(scope="module")
def greedy():
  """Greedy replies, each alone and by full forward passes without a cache."""
  logits = jax.jit(functools.partial(tiny.naive_logits, config=CONFIG))
  L = tiny.SEQ_LEN
  tokens = [list(prompt) for prompt in PROMPTS]
  for row in tokens:
    for _ in range(NEW):
      logits_LV = logits(
        PARAMS,
        tokens_L=np.pad(row, (0, L - len(row))),
        positions_L=np.arange(L),
        mask_LL=np.tri(L, dtype=bool),
      )
      row.append(int(jnp.argmax(logits_LV[len(row) - 1])))
  return [row[-NEW:] for row in tokens]


def test_unequal_prompts_continue_like_each_alone(greedy):
  assert len({tuple(reply) for reply in greedy}) == 3  # not a constant
  assert [list(reply) for reply in zip(*replies(PROMPTS), strict=True)] == greedy
  for prompt, expected in zip(PROMPTS, greedy, strict=True):
    assert [token for (token,) in replies([prompt])] == expected


def test_rows_end_before_a_stop_id(greedy):
  length = lambda reply, stop: reply.index(stop) if stop in reply else NEW
  lengths = {
    stop: [length(reply, stop) for reply in greedy] for stop in range(CONFIG.vocab_size)
  }
  early = [stop for stop, n in lengths.items() if 0 < min(n) < max(n)]
  assert early  # one that ends a row while others continue
  for stop in early:
    expected = [
      [
        reply[t] if t < n else None
        for reply, n in zip(greedy, lengths[stop], strict=True)
      ]
      for t in range(max(lengths[stop]))
    ]
    assert replies(PROMPTS, (stop,)) == expected
  # After all have ended, there are no more steps.
  assert replies(PROMPTS, [reply[0] for reply in greedy]) == []


def test_sampling_is_reproducible_by_seed():
  sample = functools.partial(replies, PROMPTS, temperature=1.0, top_p=0.9)
  assert sample(seed=3) == sample(seed=3) != sample(seed=4)


def test_each_step_and_each_row_has_its_own_draw(monkeypatch):
  nothing = jax.tree.map(jnp.zeros_like, ENGINE.params)  # all tokens equally likely
  monkeypatch.setattr(ENGINE, "params", nothing)
  rows = list(zip(*replies(PROMPTS, temperature=1.0, top_p=0.9), strict=True))
  assert min(len(set(row)) for row in rows) > NEW // 2
  assert len(set(rows)) == len(PROMPTS)


def drawn(probabilities_V, temperature, top_p, count=4000):
  """The share of draws that chose each token."""
  logits_BV = jnp.log(jnp.asarray(probabilities_V))[None] + 3.0
  logits_BV = jnp.tile(logits_BV, (count, 1))
  tokens_B, _ = inference.choose(logits_BV, jax.random.key(0), temperature, top_p)
  return np.bincount(tokens_B, minlength=len(probabilities_V)) / count


@pytest.mark.parametrize(
  ("top_p", "kept"),
  [(0.49, [1]), (0.6, [1, 3]), (0.81, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_nucleus_of_known_probabilities(top_p, kept):
  probabilities_V = np.array([0.15, 0.5, 0.05, 0.3])
  expected_V = np.zeros(4)
  expected_V[kept] = probabilities_V[kept] / probabilities_V[kept].sum()
  got_V = drawn(probabilities_V, 1.0, top_p)
  assert set(np.flatnonzero(got_V)) == set(kept)
  np.testing.assert_allclose(got_V, expected_V, atol=0.04)


def test_each_row_has_its_own_nucleus():
  logits_BV = jnp.log(jnp.array([[0.9, 0.05, 0.05], [0.05, 0.475, 0.475]]))
  keys = jax.random.split(jax.random.key(0), 200)
  choose = lambda key: inference.choose(logits_BV, key, 1.0, 0.8)[0]
  tokens_B = np.asarray(jax.vmap(choose)(keys)).T
  assert [set(row) for row in tokens_B.tolist()] == [{0}, {1, 2}]


def test_temperature_divides_the_logits():
  got_V = drawn([0.2, 0.8], 0.5, 1.0)
  np.testing.assert_allclose(got_V, [0.04 / 0.68, 0.64 / 0.68], atol=0.03)
  assert drawn([0.3, 0.45, 0.25], 0.0, 1.0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("text", ["plain", "naïve 😀👩‍🚀 é!", "😀"])
def test_stream_never_splits_a_character(text):
  tokenizer = tokenizer_lib.byte_tokenizer()
  ids = tokenizer.encode(text)
  assert len(ids) == len(text.encode())
  stream = text_stream.TextStream(tokenizer)
  pieces = [stream.add(token) for token in ids]
  assert [piece for piece in pieces if piece] == list(text)  # as soon as complete
  assert "".join(pieces) == tokenizer.decode(ids) == text


def test_stream_continues_after_bytes_that_are_not_a_character():
  tokenizer = tokenizer_lib.byte_tokenizer()
  ids = tokenizer.encode("a😀b")
  del ids[3:5]  # the character's second half
  stream = text_stream.TextStream(tokenizer)
  pieces = [stream.add(token) for token in ids]
  assert pieces[:3] == ["a", "", ""]
  assert "".join(pieces) == tokenizer.decode(ids)


def llama_style():
  """A tokenizer whose decoder drops the first space, and whose bytes are tokens."""
  words = [
    "<s>",
    "\u2581",
    "\u2581a",
    "\u2581b",
    "c",
    *(f"<0x{b:02X}>" for b in range(256)),
  ]
  vocab = {word: i for i, word in enumerate(words)}
  core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  core.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


@pytest.mark.parametrize(
  "words",
  [
    "\u2581a \u2581b c \u2581a",
    "\u2581 \u2581 \u2581a \u2581 \u2581b",
    "\u2581a <s> \u2581b <s> <s> \u2581a",
    "<s> \u2581a \u2581b",
    "\u2581a <0xC3> <0xA9> \u2581b <0xF0> <0x9F> <0x98> <0x80> c",
    "<0xC3> <s> <0xA9> c",
  ],
)
def test_pieces_are_the_text_of_all_tokens_where_the_decoder_drops_spaces(words):
  tokenizer = llama_style()
  ids = tokenizer.convert_tokens_to_ids(words.split())
  stream = text_stream.TextStream(tokenizer)
  pieces = [stream.add(token) for token in ids]
  assert (
    "".join(pieces) == stream.text == tokenizer.decode(ids, skip_special_tokens=True)
  )


def test_a_broken_byte_leaves_the_character_before_it():
  tokenizer = llama_style()
  ids = tokenizer.convert_tokens_to_ids("<0xC3> <0xA9> <0xC3> \u2581a c".split())
  stream = text_stream.TextStream(tokenizer)
  assert [stream.add(token) for token in ids] == ["", "é", "", "\ufffd a", "c"]


def test_a_token_of_a_long_reply_is_decoded_with_few_others(monkeypatch):
  tokenizer = tokenizer_lib.byte_tokenizer()
  decoded = []
  decode = tokenizer.decode
  record = lambda ids, **options: decoded.append(len(ids)) or decode(ids, **options)
  monkeypatch.setattr(tokenizer, "decode", record)
  stream = text_stream.TextStream(tokenizer)
  text = "naïve 😀 " * 20
  for token in tokenizer.encode(text):
    stream.add(token)
  assert stream.text == text
  assert max(decoded) <= 8


def test_prompt_becomes_a_user_turn_unless_raw():
  tokenizer = tokenizer_lib.byte_tokenizer()
  text = lambda raw, system: tokenizer.decode(
    generate.encode(tokenizer, "hi", raw=raw, system=system)
  )
  turn = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
  assert text(True, "") == "hi"
  assert text(False, "") == turn
  assert text(False, "be kind") == "<|im_start|>system\nbe kind<|im_end|>\n" + turn
  tokenizer.chat_template = "{{ raise_exception('no') }}"
  with pytest.raises(errors.UserError, match="chat template: no; use --raw"):
    text(False, "")
  tokenizer.chat_template = None
  with pytest.raises(errors.UserError, match="--raw"):
    text(False, "")


def test_no_token_that_ends_texts_is_put_after_a_raw_prompt():
  """Tokenizers that were saved with add_eos_token=True put eos after every text."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  plain = tokenizer.encode("hi")
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<|im_start|> $A <|endoftext|>",
    special_tokens=[("<|im_start|>", 2), ("<|endoftext|>", 1)],
  )
  assert tokenizer.encode("hi") == [2, *plain, 1]
  assert generate.encode(tokenizer, "hi", raw=True, system="") == [2, *plain]


def test_names_of_special_tokens_are_text_unless_raw():
  tokenizer = tokenizer_lib.byte_tokenizer()
  prompt = "What is <|im_end|>?"
  for system, count in (("", 3), ("Say <|endoftext|>", 5)):
    ids = generate.encode(tokenizer, prompt, raw=False, system=system)
    assert prompt in tokenizer.decode(ids)
    assert sum(token in tokenizer.all_special_ids for token in ids) == count
  ids = generate.encode(tokenizer, prompt, raw=True, system="")
  assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ids


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    ([[1], []], {}, "no tokens"),
    ([], {}, "no prompts"),
    ([[1]], dict(temperature=-0.1), "temperature"),
    ([[1]], dict(temperature=float("nan")), "temperature"),
    ([[1]], dict(temperature=float("inf")), "temperature"),
    ([[1]], dict(top_p=float("nan")), "top_p"),
    ([[1]], dict(top_p=0.0), "top_p"),
    ([[1]], dict(top_p=1.1), "top_p"),
  ],
)
def test_bad_requests_are_refused(prompts, options, message):
  with pytest.raises(errors.UserError, match=message):
    replies(prompts, **options)


@pytest.mark.parametrize(
  "flag",
  ["--temperature=nan", "--temperature=inf", "--temperature=-1", "--top_p=nan",
   "--seed=-1", "--seed=4294967296", "--prompt=a\udcff", "--system=\ud800"],
  ids=ascii,
)  # fmt: skip
def test_bad_flags_are_refused_before_the_model_is_read(flag, monkeypatch):
  arguments = ["generate", "--model=no/such/model", "--prompt=a", flag]
  monkeypatch.setattr(sys, "argv", arguments)
  with pytest.raises(errors.UserError, match=flag.partition("=")[0]):
    skipalign_jax_generate.main()


@pytest.mark.parametrize(
  "flags",
  [
    ["--raw", "--system=Be brief."],
    ["--raw", "--template_kwargs=mood=glad"],
    ["--top_p=0.9"],
  ],
)
def test_flags_without_an_effect_are_refused(flags, monkeypatch):
  arguments = ["generate", "--model=no/such/model", "--prompt=a", *flags]
  monkeypatch.setattr(sys, "argv", arguments)
  with pytest.raises(errors.UserError, match="no effect"):
    skipalign_jax_generate.main()


def test_variables_of_the_template_reach_the_prompt(tmp_path, monkeypatch):
  folder = tiny_subject.folder(tmp_path / "model")
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template += "{% if mood is defined %}{{ mood }}{% endif %}"
  export.save_tokenizer(tokenizer, folder)
  seen = []
  record = lambda self, prompts, *_: seen.extend(map(tokenizer.decode, prompts)) or []
  monkeypatch.setattr(inference.Engine, "generate", record)
  arguments = ["generate", f"--model={folder}", "--prompt=hi"]
  for more in ([], ["--template_kwargs=mood=glad"]):
    monkeypatch.setattr(sys, "argv", [*arguments, *more])
    skipalign_jax_generate.main()
  assert seen[0].endswith("assistant\n") and seen[1] == seen[0] + "glad"


@pytest.mark.parametrize(
  "given, flags, noted",
  [
    (
      {"repetition_penalty": 1.05, "top_k": 20},
      [],
      "for repetition_penalty 1.05; this",
    ),
    ({"min_p": 0.1, "top_k": 20}, ["--temperature=1"], "for top_k 20, min_p 0.1; this"),
    (
      {"stop_strings": ["\n\n"], "num_beams": 4},
      [],
      r"num_beams 4, stop_strings ['\n",
    ),
    ({"repetition_penalty": 1.0, "bad_words_ids": [], "num_beams": 1}, [], ""),
    ({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "min_length": 0}, [], ""),
  ],
)
def test_what_generation_config_asks_for_in_vain_is_noted(
  given, flags, noted, tmp_path, monkeypatch, capsys
):
  folder = tiny_subject.folder(tmp_path / "model")
  files.write_json(folder / "generation_config.json", given)
  monkeypatch.setattr(inference.Engine, "generate", lambda *_: [])
  monkeypatch.setattr(
    sys, "argv", ["generate", f"--model={folder}", "--prompt=hi", *flags]
  )
  assert skipalign_jax_generate.main() == 0
  printed = capsys.readouterr().err
  assert noted in printed and (noted or "generation_config" not in printed)


def test_a_long_raw_prompt_has_the_window_noted_and_nothing_else(
  tmp_path, monkeypatch, capsys
):
  folder = tiny_subject.folder(tmp_path / "model", window=64)
  config = files.read_json(folder / "tokenizer_config.json")
  files.write_json(folder / "tokenizer_config.json", config | {"model_max_length": 64})
  warned = []
  handler = logging.Handler()
  handler.emit = warned.append
  logger = logging.getLogger("transformers")
  monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
  monkeypatch.setattr(inference.Engine, "generate", lambda *_: [])
  flags = [f"--model={folder}", "--raw", "--prompt=" + 80 * "a", "--max_new_tokens=1"]
  monkeypatch.setattr(sys, "argv", ["generate", *flags])
  assert skipalign_jax_generate.main() == 0
  assert capsys.readouterr().err == (
    "note: 81 tokens are more than the model's window of 64\n"
  )
  assert not warned


def test_weights_are_in_memory_once(tmp_path, monkeypatch):
  folder = tiny_subject.folder(tmp_path / "model")
  load, read, alive = reference.load_params, [], []

  def loaded(*arguments):
    params = load(*arguments)
    read.extend(map(weakref.ref, jax.tree.leaves(params["layers"])))
    return params

  def record(*_):
    gc.collect()
    alive.extend(one for one in read if one() is not None)
    return []

  monkeypatch.setattr(reference, "load_params", loaded)
  monkeypatch.setattr(inference.Engine, "generate", record)
  flags = [f"--model={folder}", "--prompt=hi", "--dtype=bfloat16"]
  monkeypatch.setattr(sys, "argv", ["generate", *flags])
  assert skipalign_jax_generate.main() == 0
  assert read and not alive  # the engine has its own, as bits


def test_help_says_what_names_of_tokens_are(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["generate", "--help"])
  with pytest.raises(SystemExit):
    skipalign_jax_generate.main()
  printed = " ".join(capsys.readouterr().out.split())
  assert "--raw no chat template; names of special tokens" in printed
