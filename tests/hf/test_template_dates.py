"""Texts that chat templates write do not depend on the day, the hour or on chance."""

import datetime
import random

import hypothesis
import pytest
import tiny_subject
import tiny_train
from hypothesis import strategies as st

from skipalign_jax import config as config_lib
from skipalign_jax import evaluate
from skipalign_jax.data import chat, prepare
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import subject
from skipalign_jax.hf import chat_template, export, native, template_dates
from skipalign_jax.runtime import errors, files
from skipalign_jax.training import loop, run, setup, starts

ASKED = [{"role": "user", "content": "a"}]
# Of the kind of Llama 3.2: a date that can be given, today's if it is not.
CLOCK = (
  "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
  "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
  "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
  "{{ '<|im_start|>system\nToday Date: ' + date_string + '<|im_end|>\n' }}"
) + tokenizer_lib.CHATML


def make(template=CLOCK, date="2024-07-06"):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = template
  template_dates.set_date(tokenizer, date)
  return tokenizer


@pytest.fixture
def day(monkeypatch):
  """Sets the date of this machine."""
  return lambda date: monkeypatch.setattr(template_dates, "today", lambda: date)


def test_the_date_is_that_of_the_tokenizer():
  tokenizer = make()
  text = chat_template.render(tokenizer, ASKED)
  assert "Today Date: 06 Jul 2024<" in text and tokenizer.chat_template == CLOCK
  assert template_dates.date_of(tokenizer) == "2024-07-06"
  macro = "{% macro day() %}{{ strftime_now(format='%Y-%m-%d') }}{% endmacro %}"
  tokenizer.chat_template = {"default": macro + "{{ day() }}", "tool_use": "b"}
  assert chat_template.render(tokenizer, ASKED) == "2024-07-06"
  assert chat_template.render(tokenizer, ASKED, tools=[{"type": "function"}]) == "b"
  tokenizer.chat_template = tokenizer_lib.CHATML
  assert template_dates.date_of(tokenizer) is None


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.lists(
    st.sampled_from(["%%", "%", "a", " ", "-", *(f"%{c}" for c in "aAbBdDHjmMpSUyYZ")])
    | st.sampled_from(
      ["%-d", "%-m", "%-H", "%e", "%F", "%T", "%c", "%x", "%X", "%r", "%h"]
    )
  ),
  st.dates(datetime.date(1970, 1, 1), datetime.date(2100, 1, 1)),
)
def test_directives_are_those_of_python(parts, date):
  form = "".join(parts)
  hypothesis.assume(not form.endswith("%") and "%%" + "%" not in form)
  hypothesis.assume(not set(form.split("%")[1:]) & {"-", " "})
  tokenizer = make(f"{{{{ strftime_now({form!r}) }}}}|", date.isoformat())
  moment = datetime.datetime(date.year, date.month, date.day)
  assert chat_template.render(tokenizer, ASKED) == moment.strftime(form) + "|"


@pytest.mark.parametrize("date", ["26 Jul 2024", "2024-02-30", "2024", "today"])
def test_other_dates_are_refused(date):
  with pytest.raises(errors.UserError, match=f"--date={date} .*YYYY-MM-DD"):
    template_dates.set_date(make(), date, "--date")
  c = config_lib.tiny(config_lib.default())
  c.data.date = date
  with pytest.raises(errors.UserError, match=f"data.date={date}"):
    tokenizer_lib.resolve(c)


def test_what_a_template_draws_is_always_the_same():
  tokenizer = make("{{ range(10**5) | random }} {{ lipsum(1) }}")
  random.seed(1)
  before = random.getstate()
  first = chat_template.render(tokenizer, ASKED)
  assert random.getstate() == before
  random.seed(2)
  assert chat_template.render(tokenizer, ASKED) == first


def test_an_exported_tokenizer_has_the_template_alone(tmp_path):
  export.save_tokenizer(make(), tmp_path)
  config = files.read_json(tmp_path / "tokenizer_config.json")
  assert config.pop("chat_template") == CLOCK and "2024" not in str(config)


def test_samples_and_protocols_name_the_date_of_a_clock_only():
  for template, differ in ((CLOCK, True), (tokenizer_lib.CHATML, False)):
    one, other = make(template), make(template, "2024-07-07")
    identity = prepare.tokenizer_identity
    assert (identity(one) != identity(other)) == differ
    described = subject.identity("m", tiny_subject.CONFIG, one, "float32")
    assert described.get("date") == ("2024-07-06" if differ else None)
  (sample,) = chat.Encoder(make(), 999)([[("user", "a"), ("assistant", "b")]])
  assert "06 Jul 2024" in make().decode(sample.tokens)


def test_an_evaluation_keeps_its_date(tmp_path, day):
  model, out = tiny_subject.folder(tmp_path / "model"), tmp_path / "out"
  export.save_tokenizer(make(), model)
  flags = ["needle", f"--model={model}", f"--out={out}", "--dtype=float32"]
  flags += ["--limit=1", "--lengths=300", "--depths=1", "--max_new_tokens=1"]
  day("2024-07-06")
  evaluate.main(flags)
  first = files.read_json(out / "results.json")
  assert first["protocol"]["date"] == "2024-07-06"
  day("2024-07-07")
  evaluate.main(flags)
  assert files.read_json(out / "results.json") == first
  with pytest.raises(errors.UserError, match="date: '2024-07-06' in the folder"):
    evaluate.main([*flags, "--date=2024-07-07"])
  given = [*flags, f"--out={tmp_path / 'given'}", "--date=2024-07-06"]
  evaluate.main(given)
  assert files.read_json(tmp_path / "given" / "results.json") == first
  named = [f"--out={tmp_path / 'named'}", "--template_kwargs=date_string=1 May 2001"]
  evaluate.main([*given, *named])
  protocol = files.read_json(tmp_path / "named" / "protocol.json")
  assert protocol["items_sha256"] != first["protocol"]["items_sha256"]


def test_a_run_keeps_its_date(tmp_path, day, monkeypatch):
  begin = lambda setup: (None, setup.data.train_iterator())
  monkeypatch.setattr(run, "begin", begin)  # no step is needed
  monkeypatch.setattr(loop.Loop, "run", lambda *_: 0)
  model, folder = tiny_subject.folder(tmp_path / "model"), tmp_path / "run"
  export.save_tokenizer(make(), model)

  def config(date=""):
    c = tiny_train.load("llama2_ntk")
    c.model, c.rope = config_lib.default().model, config_lib.default().rope
    c.model.init_from, c.model.compute_dtype = str(model), "float32"
    c.data.tokenizer, c.data.template, c.data.date = "", "model", date
    c.data.seq_len, c.steps, c.batch_size = 128, 1, 2
    c.data.cache_dir = str(tmp_path / "cache")
    return c

  def fingerprint(date):
    return setup.prepare(config(date), folder, tiny_train.quiet()).data.fingerprint

  for date in ("2024-07-06", "2024-07-07"):
    day(date)
    assert tiny_train.run(config(), folder) == 0
  one, other = starts.read(folder / starts.FILE)
  assert one["data"] == other["data"] == fingerprint("2024-07-06")
  assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
  assert native.read_config(folder).config["data"]["date"] == "2024-07-06"
  with pytest.raises(errors.UserError, match=r"data\.date=2024-07-06; leave"):
    tiny_train.run(config("2024-07-07"), folder)
  assert fingerprint("2024-07-07") != one["data"]
