"""What is learned of a chat does not depend on the chats before it."""

import itertools

import numpy as np
import pytest

from skipalign_jax.data import chat, schemas
from skipalign_jax.data import tokenizer as tokenizer_lib

# Mistral 7B v0.3 and Nemo: tools before the last question, and the system prompt in it
# if nothing follows.
MISTRAL = (
  "{% set ns = namespace(last=0) %}{% for m in messages if m.role == 'user' %}"
  "{% set ns.last = m %}{% endfor %}"
  "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
  "{% if tools and m == ns.last %}{{ '<|im_start|>' + tools | tojson }}{% endif %}"
  "{{ '<|im_start|>' }}{% if loop.last and messages[0].role == 'system' %}"
  "{{ messages[0].content + ' ' }}{% endif %}{{ m.content + '<|endoftext|>' }}"
  "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# A thought only where nothing follows.
THOUGHTS = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if loop.last and m.reasoning_content %}{{ m.reasoning_content + '|' }}{% endif %}"
  "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def turns(*names, **keys):
  return [
    turn
    for name in names
    for turn in (
      {"role": "user", "content": f"{name}?"},
      {"role": "assistant", "content": name.upper()} | keys,
    )
  ]


SYSTEM = [{"role": "system", "content": "Be kind."}]
CHATS = {
  "one": {"messages": turns("a")},
  "plain": {"messages": turns("a", "b")},
  "system": {"messages": SYSTEM + turns("a", "b")},
  "tools": {"messages": turns("a", "b"), "tools": [TOOL]},
  "tools, one": {"messages": turns("a"), "tools": [TOOL]},
  "tools, three": {"messages": turns("a", "b", "c"), "tools": [TOOL]},
  "thoughts": {"messages": turns("a", "b", reasoning_content="hm")},
  "thought": {"messages": turns("a") + turns("b", reasoning_content="hm")},
}


@pytest.mark.parametrize(
  ("template", "names"),
  [
    (MISTRAL, ("one", "plain", "system", "tools", "tools, one", "tools, three")),
    (THOUGHTS, ("one", "plain", "system", "thoughts", "thought")),
  ],
)
@pytest.mark.parametrize("rewritten", ["last", "each"])
def test_the_order_of_chats_changes_no_sample(template, names, rewritten):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = template
  made = {name: schemas.dialogue_of(CHATS[name], 10_000) for name in names}
  new = lambda: chat.Encoder(tokenizer, 4096, rewritten=rewritten)
  alone = {name: new().samples([one])[0] for name, one in made.items()}
  for pair in itertools.permutations(names, 2):
    found = new().samples([made[name] for name in pair])
    for name, samples in zip(pair, found, strict=True):
      assert len(samples) == len(alone[name]), pair
      for one, expected in zip(samples, alone[name], strict=True):
        for field in ("tokens", "block_ids", "targets"):
          np.testing.assert_array_equal(
            getattr(one, field), getattr(expected, field), err_msg=f"{pair} {name}"
          )
  if rewritten == "last":
    learned = {name: len(spans(one)) for name, (one,) in alone.items()}
    assert learned["plain"] == 2 and set(learned.values()) == {1, 2}


def spans(sample):
  """Where runs of targets begin."""
  return np.flatnonzero(np.diff(sample.targets, prepend=False) & sample.targets)
