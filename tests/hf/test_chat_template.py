"""Texts of templates are those of transformers, also of the process that makes them."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import hypothesis
import jinja2
import pytest
import tiny
from hypothesis import strategies as st

from skipalign_jax.data import templates
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import chat_template, template_child, template_process
from skipalign_jax.runtime import child_process, errors

DIALOGUE = [
  {"role": "system", "content": "Be <brief> & \"kind\" 'so'."},
  {"role": "user", "content": " Grüße, 世界 😀\n"},
  {"role": "assistant", "content": "b  "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"é": [1.5]}}}]
SHOWN = "{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ x }}"
FEATURES = [
  SHOWN,
  "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n"
  "    {{- m.content }}\n{% if loop.index > 1 %}{% break %}{% endif %}\n{% endfor %}\n",
  "{{ messages|tojson }}{{ tools|tojson(indent=2) }}{{ 'é'|tojson(ensure_ascii=true) }}"
  "{{ {'b': 1, 'a': [none, true]}|tojson(separators=(',', ':'), sort_keys=true) }}",
  "{% set n = namespace(self=1, found='') %}{% for m in messages %}"
  "{% set n.found = n.found + m['role'] %}{% endfor %}{{ n.found }}{{ n.self }}",
  "{{ dict(a=1, **{'b': 2}) }}{{ dict([('c', 3)]) }}{{ dict.fromkeys('ab', 0) }}",
  "{% set y = 1 %}{% for m in messages %}{% generation %}{% set y = 2 %}"
  "{{ m.content }}{{ y }}{{ loop.index }}{% endgeneration %}{{ y }}{% endfor %}",
  "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}"
  "{% call f('<', b=bos_token) %}{{ eos_token }}{{ pad_token }}{% endcall %}",
  "{{ messages[-1].content.rstrip() }}|{{ messages|map(attribute='role')|join(',') }}"
  "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
  "{{ '%s-%05.1f' % ('a', 2) }}{{ '{0:>9}{k}'.format(1, k=2) }}{{ 7 // 2 ** 3 }}",
  "{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ range(3)|list }}{{ undefined }}",
  "{{ messages|pprint }}{{ 'a b'|title|wordwrap(1)|e }}{{ 'http://a.b'|urlize }}",
  "{% filter upper %}{% raw %}{{ x }}{% endraw %}{# no #}{% endfilter %}{{- 1 }}\n\n",
]
FAILING = [
  "{{ raise_exception('only two roles') }}",
  "{{ undefined.a }}",
  "{% if %}",
  "{{ 1 / 0 }}",
  "{{ namespace(__class__=1) }}",
  "{% set n = namespace() %}{% set n._a = 1 %}",
  "{{ range(10**9)|sum }}",
  "{{ dict.mro() }}",
  "{{ messages.append(1) }}",
  "{{ messages|tojson(default=1) }}",
  "{{ raise_exception.__globals__.a }}",
]


def make(template):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = template
  return tokenizer


def theirs(tokenizer, messages, **options):
  """The text of transformers; None if it fails."""
  try:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)
  except Exception:
    return None


@pytest.mark.parametrize("template", FEATURES)
def test_texts_are_those_of_transformers(template):
  tokenizer = make(template)
  for options in (
    {"add_generation_prompt": True},
    {"tools": TOOLS, "x": {"k": [1, 2.5, None, False]}},
  ):
    expected = theirs(tokenizer, DIALOGUE, **options)
    assert expected is not None
    assert chat_template.render(tokenizer, DIALOGUE, **options) == expected
    assert chat_template.render_all(tokenizer, [DIALOGUE] * 2, **options) == (
      [expected] * 2
    )


@pytest.mark.parametrize("template", FAILING)
def test_what_fails_in_transformers_fails(template):
  tokenizer = make(template)
  assert theirs(tokenizer, DIALOGUE) is None
  with pytest.raises(jinja2.TemplateError):
    chat_template.render(tokenizer, DIALOGUE)
  (error,) = chat_template.render_all(tokenizer, [DIALOGUE])
  assert isinstance(error, jinja2.TemplateError)


@pytest.mark.parametrize("trim", ["", " | trim"])
def test_a_last_message_stays_open_as_in_transformers(trim):
  tokenizer = make(tokenizer_lib.CHATML.replace("['content']", "['content']" + trim))
  options = {"continue_final_message": True}
  expected = theirs(tokenizer, DIALOGUE, **options)
  assert expected.endswith("b" if trim else "b  ")
  assert chat_template.render(tokenizer, DIALOGUE, **options) == expected


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # also surrogates


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.lists(st.tuples(st.sampled_from("us"), TEXT), min_size=1))
def test_any_content_arrives_as_it_is(messages):
  turns = [{"role": role, "content": content} for role, content in messages]
  tokenizer = make("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
  expected = "".join(f"{role}:{content};" for role, content in messages)
  assert chat_template.render(tokenizer, turns) == expected


def test_many_dialogues_and_templates():
  dialogues = [[{"role": "user", "content": str(i)}] for i in range(150)]
  dialogues[70][0]["content"] = "bad"
  tokenizer = make(
    "{% if messages[0].content == 'bad' %}{{ raise_exception('bad') }}{% endif %}"
    "{{ messages[0].content }}"
  )
  texts = chat_template.render_all(tokenizer, dialogues)
  assert isinstance(texts[70], jinja2.TemplateError)
  del texts[70], dialogues[70]
  assert texts == [messages[0]["content"] for messages in dialogues]
  tokenizer.chat_template = ""
  assert chat_template.render(tokenizer, dialogues[0]) == ""  # not the one before
  tokenizer.chat_template = {"default": "a", "tool_use": "b"}
  assert chat_template.render_all(tokenizer, dialogues[:1], tools=TOOLS) == ["b"]
  for unusable in ({"other": "a"}, ["a"], 7):
    tokenizer.chat_template = unusable
    with pytest.raises(jinja2.TemplateError):
      chat_template.render(tokenizer, dialogues[0])


def test_templates_of_this_project_need_no_process(monkeypatch):
  def refuse(*_):
    raise errors.UserError("a process is asked")

  monkeypatch.setattr(template_process.SHARED, "ask", refuse)
  tokenizer = tokenizer_lib.byte_tokenizer()
  assert "Grüße" in chat_template.render(tokenizer, DIALOGUE)
  templates.set_template(tokenizer, "tulu")
  assert "Grüße" in chat_template.render(tokenizer, DIALOGUE)
  tokenizer.chat_template += " "
  with pytest.raises(errors.UserError, match="is asked"):
    chat_template.render(tokenizer, DIALOGUE)


def test_what_is_drawn_is_the_same_and_our_own_draws_are_left_alone():
  tokenizer = make("{{ range(10**4)|random }} {{ lipsum(1, False) }}")
  state = random.getstate()
  assert len({chat_template.render(tokenizer, DIALOGUE) for _ in range(3)}) == 1
  assert random.getstate() == state


def asked(process, template="{{ a }}", seconds=10.0, **variables):
  job = {"variables": variables, "characters": 100}
  return process.ask(template, [job], seconds, 1 << 30)


@pytest.fixture
def process():
  made = template_process.Process()
  yield made
  made.close()


def test_a_process_that_was_ended_is_started_again(process):
  assert asked(process, a="b") == [{"text": "b"}]
  first = process.pid()
  assert asked(process, a="c") == [{"text": "c"}] and process.pid() == first
  os.kill(first, signal.SIGKILL)
  assert asked(process, a="d") == [{"text": "d"}] and process.pid() != first


def test_a_package_that_is_not_on_the_path_is_found(process, monkeypatch):
  """An editable install is imported by a hook."""
  is_elsewhere = lambda entry: pathlib.Path(entry).resolve() != tiny.ROOT
  monkeypatch.setattr(sys, "path", list(filter(is_elsewhere, sys.path)))
  assert asked(process, a="b") == [{"text": "b"}]


def test_limits_of_a_process(process):
  with pytest.raises(child_process.TooSlowError):
    asked(process, "{{ 7**(7**9) }}", seconds=0.1)
  assert process.pid() is None
  assert asked(process, "{{ 'a' * 10**10 }}") == [{"memory": True}]
  assert asked(process, "{{ 'a' * 101 }}") == [{"length": 101}]
  large = "a" * (8 << 20)
  assert asked(process, "{{ a|length }}", a=large) == [{"text": str(8 << 20)}]


def test_a_process_that_does_not_answer(process, monkeypatch):
  asked(process)
  os.kill(process.pid(), signal.SIGSTOP)
  monkeypatch.setattr(template_process, "_PATIENCE", 0.01)
  with pytest.raises(child_process.TooSlowError):
    asked(process)
  assert process.pid() is None


def test_an_interrupted_request_leaves_no_half_reply(process):
  def interrupt(*_):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGALRM, interrupt)
  signal.setitimer(signal.ITIMER_REAL, 0.3)
  try:
    with pytest.raises(KeyboardInterrupt):
      asked(process, "{{ 7**(7**9) }}")
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  assert process.pid() is None and asked(process, a="b") == [{"text": "b"}]


def test_requests_of_threads_and_of_a_fork(process):
  found = {}

  def ask(i):
    for _ in range(20):
      found[i] = asked(process, a=str(i))

  threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: [{"text": str(i)}] for i in range(4)}


def test_without_an_interpreter(process, monkeypatch, tmp_path):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(errors.UserError, match=r"status 1.*data\.template=tulu"):
    asked(process)
  monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
  with pytest.raises(errors.UserError, match=r"data\.template=tulu"):
    asked(process)


PARENT = """
import os, signal, sys, threading
from skipalign_jax.hf import template_process as t
JOB = {"variables": {}, "characters": 9}
ask = lambda text: t.SHARED.ask(text, [JOB], 60.0, 1 << 30)
print(ask("ok")[0]["text"], t.SHARED.pid(), flush=True)
if sys.argv[1] == "fork":
  if not os.fork():
    os._exit(0 if ask("in")[0]["text"] == "in" else 1)
  sys.exit(os.wait()[1] or ask("ok") != [{"text": "ok"}])
if sys.argv[1] == "end":
  sys.exit(0)
threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv[1]))).start()
ask("{{ 7**(7**9) }}")
"""


@pytest.mark.parametrize(
  "how", ["end", "fork", str(int(signal.SIGKILL)), str(int(signal.SIGINT))]
)
def test_it_ends_with_its_parent(how):
  """Also in the middle of a long request, and without HOME and other variables."""
  with subprocess.Popen(
    [sys.executable, "-c", PARENT, how],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={},
  ) as parent:
    reply, pid = parent.stdout.readline().split()
    assert reply == b"ok"
    printed = parent.stderr.read()  # to its end: nobody has it open any more
    status = parent.wait()
  assert status == {"9": -9, "2": -2}.get(how, 0), printed
  assert b"Interrupt" in printed if how == "2" else not printed
  until = time.monotonic() + 5
  while os.path.exists(f"/proc/{int(pid)}") and time.monotonic() < until:
    time.sleep(0.01)
  assert not os.path.exists(f"/proc/{int(pid)}")


def test_the_process_loads_neither_numpy_nor_jax():
  code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code, template_child.__file__],
    capture_output=True,
    text=True,
    check=True,
    cwd="/",
  )
  loaded = set(done.stdout.split())
  assert "jinja2" in loaded
  assert not loaded & {"jax", "numpy", "transformers", "skipalign_jax.hf"}
