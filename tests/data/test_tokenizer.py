"""The byte-level tokenizer, and the tokens that end a reply."""

import hypothesis
import pytest
from hypothesis import strategies as st

from skipalign_jax import config
from skipalign_jax.data import templates, tokenizer
from skipalign_jax.runtime import errors

BYTES = tokenizer.byte_tokenizer()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"])))
@hypothesis.example("a<|pad")
def test_bytes_round_trip(text):
  hypothesis.assume(not any(name in text for name in BYTES.get_added_vocab()))
  ids = BYTES(text)["input_ids"]
  assert ids == [4 + b for b in text.encode("utf-8")]
  assert BYTES.decode(ids) == text


def test_special_tokens_are_one_token_and_round_trip():
  text = "a<|im_start|>user\n  b , c.<|im_end|>\n<|endoftext|>"
  ids = BYTES(text)["input_ids"]
  assert BYTES.decode(ids) == text
  assert [i for i in ids if i < 4] == [2, 3, 1]
  assert len(BYTES) == 260 and BYTES.pad_token_id == 0


def test_saved_tokenizer_is_the_same(tmp_path):
  BYTES.save_pretrained(tmp_path)
  again = type(BYTES).from_pretrained(tmp_path)
  text = "é<|im_end|>\n"
  assert again(text)["input_ids"] == BYTES(text)["input_ids"]
  assert again.chat_template == BYTES.chat_template


def test_stop_tokens():
  other = tokenizer.byte_tokenizer()
  eos, im_end = other.eos_token_id, other.convert_tokens_to_ids("<|im_end|>")
  assert tokenizer.stop_token_ids(other, ()) == (eos, im_end)
  assert tokenizer.stop_token_ids(other, (7, eos)) == (7, eos, im_end)
  templates.set_template(other, "tulu")
  assert tokenizer.stop_token_ids(other, ()) == (eos,)
  other.chat_template = None
  assert tokenizer.stop_token_ids(other, ()) == (eos,)


def test_resolve():
  c = config.tiny(config.default())
  c.data.template = "tulu"
  found = tokenizer.resolve(c)
  assert len(found) == 260 and "<|assistant|>" in found.chat_template
  c.data.tokenizer = ""
  with pytest.raises(errors.UserError, match=r"data\.tokenizer"):
    tokenizer.resolve(c)
