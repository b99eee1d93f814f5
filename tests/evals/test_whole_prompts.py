"""Prompts have the tokens of their whole text, whatever the tokenizer does at edges."""

import re
import string

import pytest
import tiny_subject
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from skipalign_jax.evals import haystack, keys, needle, perplexity
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.ruler import task as ruler_task

INST = (
  "{{ bos_token }}{% for message in messages %}"
  "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
  "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MERGES = [f"▁ {letter}" for letter in string.ascii_letters]
MERGES += "▁t h,▁th e,s t,e r,i n,▁ ▁,a n,o n".split(",")


def sentencepiece(scheme):
  """Characters with a few merges, as Llama's and Mistral's tokenizers have them."""
  characters = [chr(code) for code in range(33, 127)]
  merges = [tuple(merge.split()) for merge in MERGES]
  tokens = ["<unk>", "<s>", "</s>", "▁", "<0x0A>", *characters]
  tokens += ["".join(merge) for merge in merges]
  vocab = {token: i for i, token in enumerate(tokens)}
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
  )
  if scheme == "llama":
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
  else:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="always", split=False
    )
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  backend.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token="<s>",
    eos_token="</s>",
    clean_up_tokenization_spaces=False,
  )


def merging():
  """Bytes, with a token for a full stop and the line breaks after it."""
  byte = tiny_subject.make().tokenizer
  vocab = byte.get_vocab()
  n = len(vocab)
  vocab |= {"ĊĊ": n, ".ĊĊ": n + 1, "Ġt": n + 2, "Ġth": n + 3}
  specials = byte.all_special_tokens
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), (".", "ĊĊ"), ("Ġ", "t"), ("Ġt", "h")])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token="<|endoftext|>",
    additional_special_tokens=specials,
    clean_up_tokenization_spaces=False,
  )
  tokenizer.chat_template = byte.chat_template
  return tokenizer


def subject_of(kind):
  tokenizer = merging() if kind == "merging" else sentencepiece(kind)
  if kind != "merging":
    tokenizer.chat_template = INST
  byte = tiny_subject.make()
  return subject_lib.Subject(byte.engine, tokenizer, byte.identity, 4096, eos_ids=())


def check(subject, tokens, chat, content):
  """`tokens` are those of the whole text, and the text is that of `content`."""
  text = subject.tokenizer.decode(tokens)
  if subject.tokenizer.chat_template == INST:
    text = text.removeprefix("<s>").removeprefix(" ")
    begin = "<s>[INST] " if chat else ""
    assert text.startswith(begin.removeprefix("<s>") + content)
    whole = "<s>" * chat + text
  else:
    whole = text
    assert whole.startswith("<|im_start|>user\n" * chat + content)
  assert "  " not in whole
  assert list(tokens) == subject.tokenizer.encode(whole, add_special_tokens=not chat)
  return whole


KINDS = pytest.mark.parametrize("kind", ["llama", "mistral", "merging"])
CHAT = pytest.mark.parametrize("chat", [True, False])


@KINDS
@CHAT
def test_needle(kind, chat):
  subject = subject_of(kind)
  options = needle.Options(
    variant="sandwich", lengths="503,504,505,506", depths="0,0.3,1", chat=chat
  )
  for item in needle.items(options, subject):
    whole = check(subject, item.query.tokens, chat, needle.BEFORE)
    assert len(item.query.tokens) == item.record["length"]
    assert re.search(r"\S " + re.escape(needle.FACT), whole) or not item.record["depth"]
    if chat and kind != "merging":
      assert whole.endswith("San Francisco? [/INST]")


@KINDS
@CHAT
def test_keys(kind, chat):
  subject = subject_of(kind)
  options = keys.Options(
    lengths="700,701,702,703", depths="0,0.5", chat=chat, rivals=True
  )
  for item in keys.items(options, subject):
    text = item.query
    for i, (tail, start) in enumerate(zip(text.tails, text.starts, strict=True)):
      whole = check(subject, text.shared + tail, chat, needle.BEFORE)
      key = item.record["keys"][i % 2]
      assert subject.tokenizer.decode(tail[start:]).strip() == key
      assert re.search(rf"\S {keys.REPLY[:16]}[a-z ]*is {key}$", whole) or (
        not chat or kind == "merging"
      )
    longest = max(map(len, text.tails))
    assert len(text.shared) + longest == item.record["length"] == item.record["tokens"]


@KINDS
@CHAT
def test_ruler(kind, chat):
  subject = subject_of(kind)
  options = ruler_task.Options(lengths="3000", samples=1, chat=chat)
  for item in ruler_task.items(options, subject):
    whole = check(subject, item.query.tokens, chat, "")
    if chat and kind != "merging":
      assert re.search(r"\[/INST\] [A-Z][^\n]*$", whole)


def test_a_text_without_a_cut_of_the_exact_length_gives_the_next_shorter_prompt(
  tmp_path,
):
  subject = tiny_subject.make()
  (tmp_path / "a.txt").write_text("日本語。" * 400, "utf-8")  # three tokens each
  found = [
    needle.items(
      needle.Options(haystack=str(tmp_path / "a.txt"), lengths=str(n), depths="0.5"),
      subject,
    )[0].record["tokens"]
    for n in (900, 901, 902)
  ]
  assert len(set(found)) == 1 and 899 <= found[0] + 2 <= 902
  mixed = haystack.Haystack(subject, "", 0)
  assert len(mixed.fill(300, "a", [], "b", False)[1]) == 300


@CHAT
@pytest.mark.parametrize("kind", ["llama", "merging"])
def test_names_of_special_tokens_in_files_are_text(kind, chat, tmp_path):
  """A page about HTML or chat markup ends no turn."""
  subject = subject_of(kind)
  names = "</s> and <s>" if kind == "llama" else "<|im_end|> and <|endoftext|>"
  page, plain = tmp_path / "page.txt", tmp_path / "plain.txt"
  page.write_text(f"Markup is {names}. " * 80)
  plain.write_text("Markup is not here. " * 80)

  def special(ids):
    return [token for token in ids if token in subject.tokenizer.all_special_ids]

  def needle_ids(path):
    options = needle.Options(haystack=str(path), lengths="500", depths="0.5", chat=chat)
    (item,) = needle.items(options, subject)
    assert len(item.query.tokens) == 500
    return item.query.tokens

  ids = needle_ids(page)
  assert special(ids) == special(needle_ids(plain))
  assert names in subject.tokenizer.decode(ids)
  (keys_item,) = keys.items(
    keys.Options(haystack=str(page), lengths="700", depths="0.5", chat=chat), subject
  )
  query = keys_item.query
  assert special(query.shared + query.tails[0]) == special(ids)
  options = perplexity.Options(files=str(page), length=64)
  (window, *_) = perplexity.items(options, subject)
  assert len(special(window.query.tokens)) == (kind == "llama")


def test_no_token_that_ends_texts_is_put_after_a_prompt():
  """Tokenizers that were saved with add_eos_token=True put eos after every text."""
  subject = subject_of("llama")
  subject.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
  )
  assert subject.tokenizer.encode("a")[-1] == 2
  (tokens, ends), plain = subject.encode_prompt("a b", False), subject.encode("a b")
  assert tokens == subject.encode("a b", special=True) == [1, *plain]
  assert len(ends) == len(tokens) and ends[-1] == len("a b")
  assert subject.encode("", special=True) == [1]  # what begins a window
