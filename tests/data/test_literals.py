"""Names of special tokens that people wrote are text, with tokenizers of both kinds."""

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from skipalign_jax.data import chat, dialogues, prompts
from skipalign_jax.data import text as text_lib
from skipalign_jax.runtime import errors

NAMES = ("<s>", "</s>", "<filename>")
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
  "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece():
  """As Llama 2's: a space is put before a text, and bytes are the last resort."""
  words = [*NAMES, "▁", *"abcs/<>[]INT", "fi", "le", "▁a", "<s", "</", "s>"]
  vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
  vocab |= {f"<0x{b:02X}>": len(vocab) + b for b in range(256)}
  merges = [("▁", "a"), ("<", "s"), ("<", "/"), ("s", ">")]
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<s>")
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return backend


def byte_level():
  """As Llama 3's and Qwen's."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {word: i for i, word in enumerate([*NAMES, *alphabet, "<s", "s>"])}
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=[("<", "s"), ("s", ">")])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  return backend


@pytest.fixture(params=[sentencepiece, byte_level])
def tokenizer(request):
  made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=request.param(), bos_token="<s>", eos_token="</s>"
  )
  made.add_tokens([tokenizers.AddedToken("<filename>", special=True)])
  made.chat_template = TEMPLATE
  return made


@pytest.mark.parametrize(
  "question",
  ["a <s> b", "<s>a</s>", "</s><s>", "a<filename>.b", "<filename>", "é <s>é"],
)
@pytest.mark.parametrize("answer", ["b", "a <filename> c"])
def test_names_in_chats(tokenizer, question, answer):
  pairs = [("user", question), ("assistant", answer)]
  sample, plain = chat.Encoder(tokenizer, 999)(
    [pairs, [("user", "a"), ("assistant", "b")]]
  )
  ids = tokenizer.convert_tokens_to_ids(list(NAMES))
  special = np.isin(sample.tokens, ids)
  np.testing.assert_array_equal(
    sample.tokens[special], plain.tokens[np.isin(plain.tokens, ids)]
  )
  text = f"<s>[INST] {question} [/INST] {answer}</s>"
  assert tokenizer.decode(sample.tokens).replace("<s> [INST", "<s>[INST") == text
  assert tokenizer.decode(sample.tokens[sample.targets]).strip() == f"{answer}</s>"


def test_names_in_texts(tokenizer):
  for document in ("a <s> b", "</s>", "a<filename>b"):
    ((sample,),) = text_lib.Encoder(tokenizer, 999, "none")([document])
    assert tokenizer.decode(sample.tokens[:-1]).strip() == document
    special = tokenizer.convert_tokens_to_ids(list(NAMES))
    assert not np.isin(sample.tokens[:-1], special).any()
    assert sample.tokens[-1] == tokenizer.eos_token_id


def test_a_name_of_the_template_in_a_reply_is_refused(tokenizer):
  tokenizer.chat_template = TEMPLATE.replace("eos_token", "'</s>'")
  good, bad = chat.Encoder(tokenizer, 999)(
    [[("user", "a</s>"), ("assistant", "b")], [("user", "a"), ("assistant", "b</s>")]]
  )
  assert isinstance(good, chat.Sample) and bad.reason == "control token in content"


def spelled(tokenizer, ids):
  return tokenizer.decode(ids).replace("<s> [INST", "<s>[INST")


@pytest.mark.parametrize("content", ["a", "a <s> b", "</s>", "<filename>é<s>"])
def test_names_in_prompts(tokenizer, content):
  text = f"<s>[INST] {content} [/INST]"
  ids, ends = prompts.of_text(tokenizer, text, 10, 10 + len(content))
  asked = prompts.of_dialogue(tokenizer, dialogues.plain([("user", content)]))
  assert spelled(tokenizer, ids) == text and ids == asked
  special = tokenizer.convert_tokens_to_ids(list(NAMES))
  assert np.isin(ids, special).sum() == 1 and ids[0] == tokenizer.bos_token_id
  assert ends == sorted(ends) and ends[-1] == len(text) and len(ends) == len(ids)
  # The tokens up to a place are the text up to there, but for parts of names.
  for place in (10, 10 + len(content), len(text)):
    count = sum(end <= place for end in ends)
    assert text[:place].startswith(spelled(tokenizer, ids[:count]))


def test_prompts_that_cannot_be_encoded(tokenizer):
  for content, words in (
    ("<s>\ue002", "and the character"),
    ("[name]<s>", "reads itself"),
  ):
    tokenizer.chat_template = TEMPLATE.replace(
      "m['content'] +", "m['content'].replace('[name]<s>', 'x') +"
    )
    with pytest.raises(errors.UserError, match=f"name of a special token.*{words}"):
      prompts.of_dialogue(tokenizer, dialogues.plain([("user", content)]))
