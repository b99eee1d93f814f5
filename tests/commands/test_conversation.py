"""A conversation: what each reply is asked after, and how it ends."""

import io
import subprocess
import sys

import pytest
import tiny
import tiny_subject

from skipalign_jax import generate as skipalign_jax_generate
from skipalign_jax.commands import chat
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

TOKENIZER = tokenizer_lib.byte_tokenizer()


class Model:
  """Replies with given texts and keeps the prompts."""

  def __init__(self, *texts, interrupt_after=None):
    self.prompts, self._texts, self._stop = [], list(texts), interrupt_after

  def __call__(self, prompts):
    self.prompts.append(TOKENIZER.decode(prompts[0]))
    for at, token in enumerate(TOKENIZER.encode(self._texts.pop(0))):
      if at == self._stop:
        raise KeyboardInterrupt
      yield [token]
    yield [None]


def prompt(*contents, system=""):
  roles = ("user", "assistant") * len(contents)
  messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
  if system:
    messages.insert(0, {"role": "system", "content": system})
  return TOKENIZER.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=False
  )


def hold(model, *lines, system="", window=10_000):
  chat.hold(lines, model, TOKENIZER, system, window)
  return model.prompts


def test_a_reply_is_asked_after_all_that_was_said(capsys):
  found = hold(Model("Hello ü.", "Fine."), "Hi!", "How are you?", system="Be brief.")
  assert found == [
    prompt("Hi!", system="Be brief."),
    prompt("Hi!", "Hello ü.", "How are you?", system="Be brief."),
  ]
  assert capsys.readouterr().out == "Hello ü.\nFine.\n"


def test_empty_lines_say_nothing_and_new_begins_again():
  found = hold(Model("a", "b"), "one", "  ", "", " /new ", "two", system="S")
  assert found == [prompt("one", system="S"), prompt("two", system="S")]


def test_an_interrupted_reply_stays_as_far_as_it_was_printed(capsys):
  model = Model("Hello there.", "x", interrupt_after=5)
  assert hold(model, "Hi!", "More.")[1] == prompt("Hi!", "Hello", "More.")
  assert capsys.readouterr().out.startswith("Hello\n")


@pytest.mark.parametrize(
  "model", [Model("", "b"), Model("a", "b", interrupt_after=0)], ids=["ended", "Ctrl-C"]
)
def test_a_line_whose_reply_has_no_text_is_no_part_of_the_conversation(model, capsys):
  hold(model, "one", "two")
  assert model.prompts == [prompt("one"), prompt("two")]
  assert "error" not in capsys.readouterr().err


def test_a_long_conversation_is_noted(capsys):
  hold(Model("a", "b"), "x" * 40, "y", window=60)
  noted = capsys.readouterr().err
  assert noted.count("more than the model's window of 60") == 1


def test_a_refused_line_is_reported_and_not_part_of_the_conversation(
  capsys, monkeypatch
):
  encode = chat.prompts.of_dialogue

  def refuse(tokenizer, dialogue):
    if "bad" in dialogue.messages[-1].content:
      raise errors.UserError("the prompt has a name")
    return encode(tokenizer, dialogue)

  monkeypatch.setattr(chat.prompts, "of_dialogue", refuse)
  assert hold(Model("a", "b"), "one", "bad", "two")[1] == prompt("one", "a", "two")
  assert "error: the prompt has a name" in capsys.readouterr().err


def test_lines_of_a_file_end_with_it():
  assert list(chat.typed(io.StringIO("a\n\nb"))) == ["a", "", "b"]
  with pytest.raises(errors.UserError, match="UTF-8"):
    list(chat.typed(io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")))


# Replies that never end; the command gets a signal in each.
ENDLESS = """if True:
  import os, signal, sys, time
  from skipalign_jax.commands import chat
  from skipalign_jax.data import tokenizer as tokenizer_lib
  from skipalign_jax.runtime import errors, signals
  TOKENIZER = tokenizer_lib.byte_tokenizer()
  def reply(prompts):
    yield TOKENIZER.encode("a")
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    time.sleep(2 * signals.TOGETHER)
    while True: yield TOKENIZER.encode("b")
  def main(): chat.hold(["one", "two", "three"], reply, TOKENIZER, "", 10_000)
  errors.run_command(main)
"""


@pytest.mark.parametrize(
  ("name", "status", "printed"), [("SIGINT", 0, "a\na\na\n"), ("SIGTERM", 143, "a")]
)
def test_each_reply_can_be_interrupted_and_sigterm_ends_all(name, status, printed):
  command = [sys.executable, "-c", ENDLESS, name]
  found = subprocess.run(
    command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=60
  )
  assert (found.returncode, found.stdout) == (status, printed), found.stderr


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_person_ends_it(monkeypatch, end):
  lines = iter(["Hi", ""])

  def read(mark):
    assert mark == "> "
    try:
      return next(lines)
    except StopIteration:
      raise end from None

  monkeypatch.setattr("builtins.input", read)
  assert list(chat.typed(Terminal())) == ["Hi", ""]


def test_the_command(tmp_path, monkeypatch, capsys):
  model = tiny_subject.folder(tmp_path / "model")
  argv = ["generate", f"--model={model}", "--max_new_tokens=3"]
  monkeypatch.setattr(sys, "argv", [*argv, "--prompt=Hi"])
  assert skipalign_jax_generate.main() == 0
  alone = capsys.readouterr().out
  monkeypatch.setattr(sys, "argv", [*argv, "--chat"])
  monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/new\nHi\n"))
  assert skipalign_jax_generate.main() == 0
  assert capsys.readouterr().out == 2 * alone


def test_a_question_that_is_asked_again_is_sampled_again(tmp_path, monkeypatch, capsys):
  model = tiny_subject.folder(tmp_path / "model")
  flags = [f"--model={model}", "--max_new_tokens=8", "--temperature=1", "--seed=4"]
  found = []
  for _ in range(2):
    monkeypatch.setattr(sys, "argv", ["generate", *flags, "--chat"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/new\nHi\n"))
    assert skipalign_jax_generate.main() == 0
    found.append(capsys.readouterr().out)
  monkeypatch.setattr(sys, "argv", ["generate", *flags, "--prompt=Hi"])
  assert skipalign_jax_generate.main() == 0
  first = capsys.readouterr().out
  assert found[0] == found[1]  # by the seed
  assert found[0].startswith(first) and found[0] != 2 * first


def test_chat_has_no_raw_prompts(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["generate", "--model=x", "--chat", "--raw"])
  with pytest.raises(errors.UserError, match="leave out --raw"):
    skipalign_jax_generate.main()


@pytest.mark.parametrize("flags", [[], ["--chat", "--prompt=a"]])
def test_either_prompts_or_a_conversation(monkeypatch, capsys, flags):
  monkeypatch.setattr(sys, "argv", ["generate", "--model=x", *flags])
  with pytest.raises(SystemExit):
    skipalign_jax_generate.main()
  assert "one of --prompt=TEXT and --chat" in capsys.readouterr().err
