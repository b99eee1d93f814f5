"""Chats with tools: what is read, what is learned, in templates of several kinds."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

from skipalign_jax.data import chat, dialogues, rendering, schemas, spans, templates
from skipalign_jax.data import tokenizer as tokenizer_lib

LOOP = "{% for m in messages %}"
HEAD = "{{ '<|im_start|>' + m.role + '\n' }}"
END = "{{ '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TOOLS = (
  "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}"
  "{% endif %}"
)
# Qwen2.5: results of tools share a turn of the user.
CALLS = (
  "{% for c in m.tool_calls %}{% set f = c.function %}"
  "{{ ('\n' if m.content or not loop.first else '') + '<tool_call>' }}"
  "{{ {'name': f.name, 'arguments': f.arguments} | tojson + '</tool_call>' }}"
  "{% endfor %}"
)
RESULTS = (
  "{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
  "{{ '\n<result>' + m.content + '</result>' }}"
  "{% if loop.last or loop.nextitem.role != 'tool' %}" + END + "{% endif %}"
)
TEMPLATES = {
  "qwen": TOOLS + LOOP + "{% if m.role == 'tool' %}" + RESULTS + "{% else %}" + HEAD
  + "{{ m.content or '' }}" + CALLS + END + "{% endif %}{% endfor %}" + ASK,
  # Qwen3: thoughts only after the last question; contents must be text.
  "thinking": TOOLS
  + "{% set n = namespace(last=0) %}{% for m in messages %}"
  "{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
  + LOOP + "{% if m.role == 'tool' %}" + RESULTS + "{% else %}" + HEAD
  + "{% if m.role == 'assistant' and loop.index0 > n.last and loop.last %}"
  "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{{ m.content.strip() }}" + CALLS + END + "{% endif %}{% endfor %}" + ASK,
  # Llama 3: one call, instead of a content; results in quotes.
  "llama": LOOP + "{% if loop.first and tools %}{{ tools | tojson }}{% endif %}"
  + "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
  "{{ raise_exception('one call at a time') }}{% endif %}"
  "{{ '<|im_start|>assistant\n' + m.tool_calls[0].function | tojson }}" + END
  + "{% elif m.role == 'tool' %}"
  "{{ '<|im_start|>ipython\n' + m.content | tojson }}" + END
  + "{% else %}" + HEAD + "{{ m.content }}" + END + "{% endif %}{% endfor %}" + ASK,
  # DeepSeek: arguments are JSON text.
  "text": TOOLS + LOOP + HEAD + "{{ m.content or '' }}{% for c in m.tool_calls %}"
  "{{ '<call>' + c.function.name + ': ' + c.function.arguments + '</call>' }}"
  "{% endfor %}" + END + "{% endfor %}" + ASK,
  # Qwen3-Coder: one line for each argument.
  "xml": TOOLS + LOOP + HEAD + "{{ m.content or '' }}{% for c in m.tool_calls %}"
  "{{ '<call=' + c.function.name + '>' }}{% for k, v in c.function.arguments | items %}"
  "{{ '<' + k + '>' + v }}{% endfor %}{% endfor %}" + END + "{% endfor %}" + ASK,
}  # fmt: skip
TOOL = {
  "type": "function",
  "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
STOP = "<|im_end|>"


def make(template):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = TEMPLATES.get(template, template)
  return tokenizer


def turn(role, content, **keys):
  return {"role": role, "content": content} | keys


def call(place, content=None):
  function = {"name": "weather", "arguments": json.dumps({"place": place})}
  calls = [{"id": place, "type": "function", "function": function}]
  return turn("assistant", content, tool_calls=calls)


def result(content, place="Rome"):
  return turn("tool", content, tool_call_id=place, name="weather")


ASKED = [turn("user", "Rain?"), call("Rome"), result('"dry"\n{"t": 20}')]
CHAT = [
  *ASKED,
  turn("assistant", "No."),
  turn("user", "Thanks."),
  turn("assistant", "Bye."),
]
TWICE = [*ASKED, call("Oslo"), result("wet", "Oslo"), *CHAT[3:]]
WRITTEN = {
  "qwen": '<tool_call>{"name": "weather", "arguments": {"place": "PLACE"}}</tool_call>',
  "llama": '{"name": "weather", "arguments": {"place": "PLACE"}}',
  "text": '<call>weather: {"place": "PLACE"}</call>',
  "xml": "<call=weather><place>PLACE",
}


def dialogue(messages, tools=(TOOL,)):
  record = {"messages": messages, "tools": list(tools)}
  return schemas.dialogue_of(record, 10_000)


def encode(template, one, **options):
  tokenizer = make(template)
  (sample,) = chat.Encoder(tokenizer, 4096, **options)([one])
  return tokenizer, sample


def learned(tokenizer, sample):
  edges = np.flatnonzero(np.diff(sample.targets, prepend=False, append=False))
  spans_ = edges.reshape(-1, 2)
  return [tokenizer.decode(sample.tokens[begin:end]) for begin, end in spans_]


def rendered(tokenizer, messages, **options):
  """By transformers, with arguments as objects or as text, as the template wants."""
  messages = json.loads(json.dumps(messages))
  for message in messages:
    for one in message.get("tool_calls", ()):
      if "function.arguments +" not in tokenizer.chat_template:
        one["function"]["arguments"] = json.loads(one["function"]["arguments"])
  return tokenizer.apply_chat_template(
    messages, tools=[TOOL], tokenize=False, **options
  )


@pytest.mark.parametrize("template", WRITTEN)
@pytest.mark.parametrize("messages", [CHAT, TWICE])
def test_calls_and_results_are_read_and_only_replies_learned(template, messages):
  tokenizer, sample = encode(template, dialogue(messages))
  assert tokenizer.decode(sample.tokens) == rendered(tokenizer, messages)
  assert learned(tokenizer, sample) == [f"No.{STOP}", f"Bye.{STOP}"]
  assert sample.calls == len(messages) // 2 - 2 and sample.turns == 2
  # A call, its result and the reply after them are one block.
  blocks = [tokenizer.decode(sample.tokens[sample.block_ids == b]) for b in range(4)]
  assert blocks[1].startswith("<|im_start|>assistant\n")
  assert blocks[1].endswith("No.<|im_end|>\n") and "weather" in blocks[1]
  assert blocks[2:] == [
    "<|im_start|>user\nThanks.<|im_end|>\n",
    "<|im_start|>assistant\nBye.<|im_end|>\n",
  ]


@pytest.mark.parametrize("template", WRITTEN)
@pytest.mark.parametrize("messages", [CHAT, TWICE, CHAT[:2]])
def test_calls_are_learned_if_that_is_asked_for(template, messages):
  """Whole, with their stop token, after the prompt that a model is given for them."""
  tokenizer, sample = encode(template, dialogue(messages), learn_calls=True)
  calls = [
    WRITTEN[template].replace("PLACE", place) + STOP for place in ("Rome", "Oslo")
  ]
  count = sum("tool_calls" in message for message in messages)
  replies = [f"No.{STOP}", f"Bye.{STOP}"] if len(messages) > 2 else []
  assert learned(tokenizer, sample) == [*calls[:count], *replies]
  assert sample.calls == 0 and sample.turns == count + len(replies)
  asked = rendered(tokenizer, messages[:1], add_generation_prompt=True)
  begin = int(np.flatnonzero(sample.targets)[0])
  assert tokenizer.decode(sample.tokens[:begin]) == asked


def test_arguments_are_never_written_as_python_prints_them():
  template = TEMPLATES["text"].replace(
    "c.function.arguments + '</call>' }}", "'' }}{{ c.function.arguments }}</call>"
  )
  text = rendering.render(make(template), dialogue(CHAT))
  assert WRITTEN["text"].replace("PLACE", "Rome") in text


def test_tools_before_each_question_that_equals_the_last_one():
  """As Mistral Small 3.1 writes them. A reply is learned if its prompt is the text."""
  tokenizer = make(
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    + LOOP + "{% if m == asked[-1] %}" + TOOLS + "{% endif %}"
    + HEAD + "{{ m.content }}" + END + "{% endfor %}" + ASK
  )  # fmt: skip
  encoder = chat.Encoder(tokenizer, 4096)
  for questions in ("a", "aa", "aba", "baa", "aab", "aaa", "ab"):
    messages = []
    for i, question in enumerate(questions):
      messages += [turn("user", question), turn("assistant", f"r{i}")]
    (sample,) = encoder([dialogue(messages)])
    text = rendered(tokenizer, messages)
    assert tokenizer.decode(sample.tokens) == text
    prompts = [
      rendered(tokenizer, messages[:end], add_generation_prompt=True)
      for end in range(1, len(messages), 2)
    ]
    replies = [f"r{i}{STOP}" for i in range(len(questions))]
    stable = all(map(text.startswith, prompts))
    assert learned(tokenizer, sample) == (replies if stable else replies[-1:])
    assert stable == (len(set(questions)) == 1)


def test_a_chat_of_calls_only_has_nothing_to_learn():
  _, bad = encode("qwen", dialogue(CHAT[:3]))
  assert bad.reason == "nothing to learn: replies are calls of tools"


@pytest.mark.parametrize("learn", [False, True])
def test_text_beside_a_call(learn):
  """A model must not learn to stop after the text where it should call."""
  messages = [CHAT[0], call("Rome", "Let me see."), *CHAT[2:]]
  tokenizer, sample = encode("qwen", dialogue(messages), learn_calls=learn)
  assert tokenizer.decode(sample.tokens) == rendered(tokenizer, messages)
  first = f"Let me see.\n{WRITTEN['qwen'].replace('PLACE', 'Rome')}{STOP}"
  expected = [*([first] if learn else []), f"No.{STOP}", f"Bye.{STOP}"]
  assert learned(tokenizer, sample) == expected
  _, bad = encode("llama", dialogue(messages), learn_calls=learn)
  assert bad.reason == "content next to tool_calls is not written by the chat template"


@pytest.mark.parametrize("learn", [False, True])
def test_a_call_that_is_text_is_known_by_the_result_after_it(learn):
  messages = [
    turn("user", "Rain?"),
    turn("assistant", "<call>weather</call>"),
    turn("tool", "dry"),
    turn("assistant", "No."),
  ]
  tokenizer, sample = encode("xml", dialogue(messages, ()), learn_calls=learn)
  first = [f"<call>weather</call>{STOP}"] if learn else []
  assert learned(tokenizer, sample) == [*first, f"No.{STOP}"]
  assert sample.calls == (not learn)


def test_several_calls_and_their_results():
  both = call("Rome")
  both["tool_calls"] += call("Oslo")["tool_calls"]
  messages = [CHAT[0], both, result("dry"), result("", "Oslo"), *CHAT[3:]]
  for learn in (False, True):
    tokenizer, sample = encode("qwen", dialogue(messages), learn_calls=learn)
    assert tokenizer.decode(sample.tokens) == rendered(tokenizer, messages)
    assert learned(tokenizer, sample)[-2:] == [f"No.{STOP}", f"Bye.{STOP}"]
    assert len(learned(tokenizer, sample)) == 2 + learn
  _, bad = encode("llama", dialogue(messages))
  assert bad.reason == "refused by the chat template: one call at a time"


def test_a_template_that_rewrites_replies_rewrites_calls():
  for learn in (False, True):
    tokenizer, sample = encode("thinking", dialogue(TWICE), learn_calls=learn)
    assert learned(tokenizer, sample) == [f"<think>\n\n</think>\n\nBye.{STOP}"]
    assert (sample.calls, sample.rewritten) == ((0, 3) if learn else (2, 1))
    encoder = chat.Encoder(tokenizer, 4096, rewritten="each", learn_calls=learn)
    (samples,) = encoder.samples([dialogue(TWICE)])
    found = [learned(tokenizer, one) for one in samples]
    assert [one[0].startswith("<think>\n\n</think>\n\n") for one in found] == (
      [True] * (4 if learn else 2)
    )


@pytest.mark.parametrize("one", ["text", "beside"])
def test_a_call_with_text_is_rewritten_as_one_without(one):
  """The template asks for it with an empty thought, and writes it without one."""
  first = {
    "text": turn("assistant", "<call>weather</call>"),
    "beside": call("Rome", "Let me see."),
  }[one]
  messages = dialogue([CHAT[0], first, *CHAT[2:4]])
  tokenizer, sample = encode("thinking", messages, learn_calls=True)
  assert learned(tokenizer, sample) == [f"<think>\n\n</think>\n\nNo.{STOP}"]
  assert sample.rewritten == 1
  encoder = chat.Encoder(tokenizer, 4096, rewritten="each", learn_calls=True)
  both = [learned(tokenizer, found) for found in encoder.samples([messages])[0]]
  assert len(both) == 2 and all(
    text.startswith("<think>\n\n</think>\n\n") for (text,) in both
  )


# Hermes: a result has a line break at its end only where more follows.
HERMES = (
  LOOP
  + "{% if m.role == 'tool' %}"
  + HEAD
  + (
    "{{ '<result>' + m.content + ('</result>' if loop.last else '</result>\n') }}"
    "{{ '<|im_end|>' }}"
  )
  + "{% else %}"
  + HEAD
  + "{{ m.content or '' }}"
  + CALLS
  + END
  + "{% endif %}"
)
HERMES += "{% endfor %}" + ASK


@pytest.mark.parametrize("messages", [CHAT[:4], CHAT])
def test_a_reply_after_a_result_that_ends_differently_there(messages):
  """It is learned after the prompt that a model gets, which is not in the text."""
  tokenizer = make(HERMES)
  samples = chat.Encoder(tokenizer, 4096, rewritten="each").samples(
    [dialogue(messages, ())]
  )[0]
  assert [learned(tokenizer, one) for one in samples] == [
    [f"{reply}{STOP}"] for reply in ("No.", "Bye.")[: len(samples)]
  ]
  assert len(samples) == len(messages) // 2 - 1
  for sample, end in zip(samples, (3, 5), strict=False):
    begin = int(np.flatnonzero(sample.targets)[0])
    asked = rendered(tokenizer, messages[:end], add_generation_prompt=True)
    assert tokenizer.decode(sample.tokens[:begin]) == asked
    heads = [tokenizer.decode(sample.tokens[sample.block_ids == b]) for b in range(2)]
    assert heads[0] == "<|im_start|>user\nRain?<|im_end|>\n"
    assert heads[1].startswith("<|im_start|>assistant\n<tool_call>")
  (last,) = chat.Encoder(tokenizer, 4096)([dialogue(messages, ())])
  assert learned(tokenizer, last) == learned(tokenizer, samples[-1])
  assert last.rewritten == len(samples) - 1


def test_a_call_after_a_result_that_ends_differently_there():
  tokenizer = make(HERMES)
  one = dialogue(TWICE, ())
  for rewritten, count in (("each", 4), ("last", 1)):
    encoder = chat.Encoder(tokenizer, 4096, rewritten=rewritten, learn_calls=True)
    samples = encoder.samples([one])[0]
    assert len(samples) == count
    for sample, end in zip(reversed(samples), (7, 5, 3, 1), strict=False):
      asked = rendered(tokenizer, TWICE[:end], add_generation_prompt=True)
      begin = int(np.flatnonzero(sample.targets)[0])
      assert tokenizer.decode(sample.tokens[:begin]) == asked
  place = lambda city: f"{WRITTEN['qwen'].replace('PLACE', city)}{STOP}"
  each = chat.Encoder(tokenizer, 4096, rewritten="each", learn_calls=True)
  assert [learned(tokenizer, s) for s in each.samples([one])[0]] == [
    [place("Rome")],
    [place("Oslo")],
    [f"No.{STOP}"],
    [f"Bye.{STOP}"],
  ]


def test_a_reply_whose_header_is_not_that_of_its_prompt_is_refused():
  template = HERMES.replace(
    "{% else %}" + HEAD,
    "{% else %}" + HEAD + "{{ '<think></think>' if m.role == 'assistant' }}",
  )
  (bad,) = chat.Encoder(make(template), 4096)([dialogue(CHAT[:4], ())])
  assert bad.reason == "changed by the chat template"
  messages = [*CHAT[:3], turn("assistant", "No.", reasoning_content="hm")]
  thinking = HERMES.replace("{{ m.content or '' }}", "{{ m.thinking }}{{ m.content }}")
  (bad,) = chat.Encoder(make(thinking), 4096)([dialogue(messages, ())])
  assert bad.reason == "changed by the chat template"


# Writes a call as it is, and a call that is nothing.
ANY_CALL = (
  LOOP
  + HEAD
  + "{{ m.content or '' }}{% for c in m.tool_calls %}"
  + "{{ '<call>' + (c.function or {}) | tojson + '</call>' }}{% endfor %}"
  + END
  + "{% endfor %}"
  + ASK
)
# Writes calls that have a name.
NAMED_CALL = ANY_CALL.replace("{{ '<call>'", "{{ c.function.name and '<call>'")
EMPTY_CALLS = (
  {"type": "function"},
  {"type": "function", "function": None},
  {"type": "function", "function": {}, "id": "a"},
  {"function": {"name": "", "arguments": "{}"}},
  {"name": " ", "arguments": {}},
  {},
)


def with_call(one, **keys):
  return [
    turn("user", "weather?"),
    turn("assistant", "", tool_calls=[one], **keys),
    turn("tool", "sunny"),
    turn("assistant", "It is sunny."),
  ]


@pytest.mark.parametrize("template", ["tulu", tokenizer_lib.CHATML, ANY_CALL])
@pytest.mark.parametrize("one", EMPTY_CALLS)
def test_a_call_that_is_nothing_is_read_as_transformers_renders_it(template, one):
  tokenizer = make(template)
  if template == "tulu":
    templates.set_template(tokenizer, template)
  messages = with_call(one)
  (sample,) = chat.Encoder(tokenizer, 4096)([dialogue(messages, ())])
  theirs = tokenizer.apply_chat_template(messages)["input_ids"]
  assert sample.tokens.tolist() == theirs
  stop = tokenizer.eos_token if template == "tulu" else STOP
  assert learned(tokenizer, sample) == [f"It is sunny.{stop}"]
  assert (sample.calls, sample.turns) == (1, 1)


@pytest.mark.parametrize(
  "one",
  [
    {"type": "function", "function": {"arguments": '{"place": "Rome"}'}},
    {"type": "function", "function": {"name": "", "arguments": {"place": "Rome"}}},
    {"arguments": {"place": "Rome"}},
  ],
)
def test_arguments_without_a_name_are_in_the_text(one):
  tokenizer, sample = encode(ANY_CALL, dialogue(with_call(one), ()))
  assert '"arguments": {"place": "Rome"}' in tokenizer.decode(sample.tokens)
  assert learned(tokenizer, sample) == [f"It is sunny.{STOP}"]
  for template in (tokenizer_lib.CHATML, NAMED_CALL):
    _, bad = encode(template, dialogue(with_call(one), ()))
    assert bad.reason == "tool_calls are not written by the chat template"


def test_a_template_may_want_a_name():
  for template in ("qwen", "llama", "text", "xml"):
    _, bad = encode(template, dialogue(with_call({"type": "function"}), ()))
    assert bad.reason.startswith("refused by the chat template: ")


def test_a_call_without_a_name_is_not_learned():
  for one in (EMPTY_CALLS[0], {"arguments": {"place": "Rome"}}):
    _, bad = encode(ANY_CALL, dialogue(with_call(one), ()), learn_calls=True)
    assert bad.reason == "a call without a name cannot be learned"
    read = dialogue(with_call(one, weight=0), ())
    tokenizer, sample = encode(ANY_CALL, read, learn_calls=True)
    assert learned(tokenizer, sample) == [f"It is sunny.{STOP}"]
    assert (sample.calls, sample.excluded) == (0, 1)


def test_a_call_without_words_is_a_call_without_content():
  for content in ("", " \n", None):
    one = dialogue([CHAT[0], call("Rome", content), *CHAT[2:]])
    assert one.messages[1].for_template()["content"] is None
    assert one.id() == dialogue(CHAT).id()


def test_the_end_of_a_conversation_may_be_a_result():
  tokenizer, sample = encode("qwen", dialogue(CHAT[:4] + ASKED))
  assert learned(tokenizer, sample) == [f"No.{STOP}"]
  assert "Rain?" in tokenizer.decode(sample.tokens[sample.block_ids == 2])


@pytest.mark.parametrize(
  ("template", "messages", "tools", "reason"),
  [
    (tokenizer_lib.CHATML, CHAT[-2:], (TOOL,), "key tools is not read"),
    (tokenizer_lib.CHATML, CHAT, (), "tool_calls are not written"),
    (
      LOOP + "{% if m.role != 'tool' %}" + HEAD + "{{ m.content or '' }}" + CALLS + END
      + "{% endif %}{% endfor %}" + ASK,
      CHAT, (), "turns of tool are not written",
    ),
    ("qwen", [CHAT[0], call("<|im_end|>"), *CHAT[2:]], (), "control token in tool_c"),
    ("qwen", [CHAT[0], call("\ue0000\ue001"), *CHAT[2:]], (), "control token in tool"),
    (
      "qwen", CHAT[-2:],
      ({"type": "function", "function": {"name": "f", "description": "<|im_end|>"}},),
      "control token in tools",
    ),
  ],
)  # fmt: skip
def test_what_the_template_does_not_write_is_refused_by_name(
  template, messages, tools, reason
):
  _, bad = encode(template, dialogue(messages, tools))
  assert bad.reason.startswith(reason)


def test_a_special_token_in_a_result_is_text():
  messages = [*CHAT[:2], result("see <|im_end|>"), *CHAT[3:]]
  tokenizer, sample = encode("qwen", dialogue(messages))
  plain = encode("qwen", dialogue(CHAT))[1]
  special = tokenizer.all_special_ids
  assert np.isin(sample.tokens, special).sum() == np.isin(plain.tokens, special).sum()
  assert tokenizer.decode(sample.tokens) == rendered(tokenizer, messages)


def test_a_stop_token_is_the_last_one_of_a_call():
  """Tokens of the call itself may be special, too."""
  tokenizer = make("qwen")
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(name, special=True)
      for name in ("<tool_call>", "</tool_call>")
    ]
  )
  (sample,) = chat.Encoder(tokenizer, 4096, learn_calls=True)([dialogue(CHAT)])
  assert learned(tokenizer, sample)[0].endswith(f"</tool_call>{STOP}")


@pytest.mark.parametrize("learn", [False, True])
def test_renderings_of_calls_do_not_grow_with_the_chat(learn, monkeypatch):
  """Each new call costs renderings of its last exchange, not of all before."""
  sizes = []
  real = rendering._render

  def render(tokenizer, one, *args):
    sizes.append(len(one.messages))
    return real(tokenizer, one, *args)

  monkeypatch.setattr(rendering, "_render", render)
  work = []
  for count in (10, 80):
    messages = [
      one
      for i in range(count)
      for one in (turn("user", "Rain?"), call(f"a{i}"), result("dry"), CHAT[3])
    ]
    sizes.clear()
    find = spans.Finder(make("qwen"), learn)
    assert len(find(dialogue(messages)).replies) == 2 * count
    work.append(sum(sizes))
  assert work[1] < 9 * work[0]


def test_weights_of_replies_between_calls():
  messages = [*CHAT[:3], CHAT[3] | {"weight": 0}, *CHAT[4:]]
  tokenizer, sample = encode("qwen", dialogue(messages))
  assert learned(tokenizer, sample) == [f"Bye.{STOP}"]
  assert (sample.excluded, sample.calls, sample.turns) == (1, 1, 1)
  again = encode("qwen", dialogue(CHAT))[1]
  np.testing.assert_array_equal(sample.tokens, again.tokens)
  assert sample.sample_id != again.sample_id


def test_ids_follow_calls_and_tools():
  one = dialogue(CHAT)
  other = dialogue([*CHAT[:1], call("Oslo"), *CHAT[2:]])
  assert len({one.id(), other.id(), dataclasses.replace(one, tools=()).id()}) == 3
  plain = dialogues.plain([("user", "a"), ("assistant", "b")])
  assert plain.id() == 2902213541  # of samples that are in caches and held-out sets
