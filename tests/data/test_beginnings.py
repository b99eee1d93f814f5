"""Long chats: only their beginning is rendered, and nothing else changes."""

import dataclasses
import functools

import hypothesis
import numpy as np
import pytest
import test_literals
import test_spans
import test_tool_chats
import tiny_files
import tokenizers
import transformers
from hypothesis import strategies as st

from skipalign_jax.data import beginnings, chat, dialogues, rendering
from skipalign_jax.data import tokenizer as tokenizer_lib

TEMPLATES = test_spans.TEMPLATES | test_tool_chats.TEMPLATES
# Before the last question, as in Mistral's templates.
TEMPLATES["moved"] = (
  "{% for m in messages if m['role'] != 'system' %}"
  "{% if m['role'] == 'user' %}{{ '<|im_start|>[INST]' }}"
  "{% if loop.revindex <= 2 and messages[0]['role'] == 'system' %}"
  "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
  "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def sentencepiece():
  """A space is put before a text, but not before what follows a special token."""
  made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=test_literals.sentencepiece(), bos_token="<s>", eos_token="</s>"
  )
  names = ("<|im_start|>", "<|im_end|>")
  made.add_tokens([tokenizers.AddedToken(name, special=True) for name in names])
  return made


KINDS = {
  "bytes": tokenizer_lib.byte_tokenizer,
  "byte_level": tiny_files.tokenizer,
  "sentencepiece": sentencepiece,
}


@functools.cache
def tokenizer(kind, template):
  made = KINDS[kind]()
  made.chat_template = TEMPLATES[template]
  return made


def encoder(template, kind="bytes", **options):
  return chat.Encoder(tokenizer(kind, template), **options)


def outcome(result):
  """All of a sample, comparable; or why there is none."""
  if isinstance(result, dialogues.BadSample):
    return result.reason
  found = dataclasses.asdict(result)
  found.pop("lost")  # of what is not rendered it is not exact
  return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


def message(role, content, learned=True):
  return dialogues.Message(role, content, learned)


CALL = dialogues.Message(
  "assistant",
  "",
  more={
    "content": None,
    "tool_calls": [
      {"type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}
    ],
  },
)


def sizes_of_renderings(monkeypatch):
  """How many messages are rendered each time."""
  sizes = []
  one_by_one, ahead = rendering._render, rendering._render_all

  def render(tokenizer, dialogue, *args):
    sizes.append(len(dialogue.messages))
    return one_by_one(tokenizer, dialogue, *args)

  def render_all(tokenizer, some, *args):
    sizes.extend(len(dialogue.messages) for dialogue in some)
    return ahead(tokenizer, some, *args)

  monkeypatch.setattr(rendering, "_render", render)
  monkeypatch.setattr(rendering, "_render_all", render_all)
  return sizes


WORDS = st.sampled_from(["a", "Yes.", "é🙂 ok", "<|im_end|>", "x " * 30, "word " * 9])
PLAIN = st.sampled_from(["a", "Yes.", "é🙂 ok", "x " * 30, "word " * 9])


@st.composite
def long_chats(draw, with_calls):
  found = [message("system", draw(WORDS))] if draw(st.booleans()) else []
  for _ in range(draw(st.integers(1, 12))):
    found.append(message("user", draw(WORDS)))
    for _ in range(draw(st.integers(0, 3)) if with_calls else 0):
      found.append(CALL)
      found.append(message("tool", draw(WORDS)))
    found.append(message("assistant", draw(PLAIN), learned=draw(st.integers(0, 4)) > 0))
  return dialogues.Dialogue(tuple(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(data=st.data())
def test_samples_are_those_of_the_whole_chat(template, kind, data):
  with_calls = template in test_tool_chats.TEMPLATES
  chats = data.draw(st.lists(long_chats(with_calls), min_size=1, max_size=3))
  options = {
    "seq_len": data.draw(st.integers(2, 300)),
    "rewritten": data.draw(st.sampled_from(["last", "each"])),
    "learn_calls": data.draw(st.booleans()),
    "kind": kind,
  }
  found = encoder(template, **options).samples(chats)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(beginnings, "of", lambda one, characters: None)
    whole = encoder(template, **options).samples(chats)
  assert [list(map(outcome, one)) for one in found] == [
    list(map(outcome, one)) for one in whole
  ]


@pytest.mark.parametrize("rewritten", ["last", "each"])
@pytest.mark.parametrize("template", ["chatml", "qwen3", "moved", "qwen", "thinking"])
def test_what_is_not_kept_is_not_rendered(template, rewritten, monkeypatch):
  pair = [message("user", "Hi there"), message("assistant", "Hello to you")]
  long = dialogues.Dialogue((message("system", "Be kind"), *pair * 5000))
  sizes = sizes_of_renderings(monkeypatch)
  (samples,) = encoder(template, seq_len=256, rewritten=rewritten).samples([long])
  assert max(sizes) < 200 and sum(sizes) < 3000
  assert len(samples) in (1, 5000)
  kept = [one for one in samples if isinstance(one, chat.Sample)]
  rewrites = template in ("qwen3", "moved", "thinking")
  assert bool(kept) == (rewritten == "each" or not rewrites)


def test_a_chat_with_one_question_and_many_calls_is_cut_too(monkeypatch):
  step = [
    CALL,
    message("tool", "done"),
  ]
  long = dialogues.Dialogue(
    (message("user", "Go"), *step * 3000, message("assistant", "Ready."))
  )
  sizes = sizes_of_renderings(monkeypatch)
  (bad,) = encoder("qwen", seq_len=256)([long])
  (sample,) = encoder("qwen", seq_len=256, learn_calls=True)([long])
  assert bad.reason == chat.NO_TARGET and sample.turns > 2
  assert max(sizes) < 200


def test_what_follows_does_not_matter():
  """Neither a reply that the template changes, nor one that it refuses."""
  pair = [message("user", "Hi there"), message("assistant", "Hello to you")]
  late = [message("user", "c"), message("assistant", "so</think>d")]
  found = encoder("r1", seq_len=200)(
    [dialogues.Dialogue(tuple(pair * 90 + end)) for end in ([], late, late + pair)]
  )
  texts = [outcome(one) | {"sample_id": 0} for one in found]
  assert texts[0] == texts[1] == texts[2] and found[0].truncated


def test_a_template_that_changes_all_is_rendered_whole(monkeypatch):
  """Where the beginning is not the same when more follows, nothing is cut."""
  count = "messages | selectattr('role', 'equalto', 'user') | list | length"
  counted = test_tool_chats.make(f"{{{{ {count} }}}}" + TEMPLATES["chatml"])
  pair = [message("user", "Hi"), message("assistant", "Hello")]
  sizes = sizes_of_renderings(monkeypatch)
  (result,) = chat.Encoder(counted, 64)([dialogues.Dialogue(tuple(pair * 100))])
  assert outcome(result) == chat.NO_TARGET and max(sizes) == 200


def test_a_long_chat_without_a_reply_to_learn_is_counted_once():
  """Each reply is a sample of its own, and this chat has none."""
  pair = [message("user", "Hi there"), message("assistant", "Hello", learned=False)]
  long = dialogues.Dialogue(tuple(pair * 200))
  (found,) = encoder("qwen3", seq_len=64, rewritten="each").samples([long])
  assert list(map(outcome, found)) == [chat.NO_TARGET]
