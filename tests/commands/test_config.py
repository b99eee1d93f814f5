"""The table of config keys: complete, consistent with the code, and enforced."""

import math

import numpy as np
import pytest

from skipalign_jax import config, config_keys
from skipalign_jax.data import text
from skipalign_jax.method import baselines, positions
from skipalign_jax.model import backends, families, lora, sharding
from skipalign_jax.runtime import errors
from skipalign_jax.training import resolve

NUMBERS = [name for name, key in config.KEYS.items() if key.kind in (int, float)]
CHOICES = [name for name, key in config.KEYS.items() if key.choices]


@pytest.fixture
def c():
  c = config.default()
  c.epochs = 2
  return c


def put(c, name, value):
  c.update_from_flattened_dict({name: value})
  if name == "steps" and value is not None:
    c.epochs = None


def outside(key):
  """The nearest numbers on the wrong side of each bound."""
  step = 1 if key.kind is int else 1e-6
  lowest = [key.at_least - step] if key.at_least is not None else [key.above]
  highest = [key.at_most + step] if key.at_most is not None else [key.below]
  return [key.kind(x) for x in (*lowest, *highest) if x is not None]


def inside(key):
  """The outermost numbers that are allowed."""
  step = 1 if key.kind is int else 1e-12
  lowest = key.at_least if key.at_least is not None else key.above + step
  highest = [key.at_most] if key.at_most is not None else []
  highest += [key.below - step] if key.below is not None else []
  extra = [key.or_value] if key.or_value is not None else []
  return [key.kind(x) for x in (lowest, *highest, *extra)]


@pytest.mark.parametrize("name", config.KEYS)
def test_each_key_has_a_meaning_and_allowed_values(name):
  key = config.KEYS[name]
  assert key.meaning[0].isupper() or key.meaning.startswith(key.choices)
  assert key.meaning.endswith(".")
  if key.kind in (int, float):
    assert key.at_least is not None or key.above is not None
    assert not key.choices
  else:
    assert key.choices or key.kind in (str, bool, tuple, object)
  assert key.accepts(key.default)


@pytest.mark.parametrize("part", config.SECTIONS, ids=lambda part: part.name)
def test_each_section_has_a_meaning(part):
  assert part.meaning[0].isupper() and part.meaning.endswith(".")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_outside_their_range_are_refused(c, name):
  key = config.KEYS[name]
  wrong = outside(key) + ([math.nan, math.inf, -math.inf] if key.kind is float else [])
  assert wrong
  for value in wrong:
    put(c, name, value)
    with pytest.raises(errors.UserError) as caught:
      resolve.check(c)
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r} is not allowed; set it to ")
    assert key.allowed() in message


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_inside_their_range_are_accepted(c, name):
  for value in inside(config.KEYS[name]):
    put(c, name, value)
    config.check(c)


@pytest.mark.parametrize(
  ("changes", "source"),
  [
    ({"data.train": "chats.jsonl"}, "builtin:recall:64"),
    ({"data.train": "pairs.jsonl", "loss.kind": "dpo"}, "builtin:pairs:64"),
    ({"data.train": "a.txt", "data.text_window": 8192}, "builtin:text:64"),
    ({"data.train": "builtin:text:900*2"}, "builtin:text:64*2"),
  ],
)
def test_a_tiny_run_has_data_of_the_kind_of_the_recipe(c, changes, source):
  c.update_from_flattened_dict(changes)
  assert config.tiny(c).data.train == source


def test_a_tiny_run_has_nothing_that_only_the_real_model_can_use(c):
  c.data.template_kwargs, c.lora.init_from = "enable_thinking=false", "adapter"
  small = config.tiny(c)
  assert (small.data.template_kwargs, small.lora.init_from) == ("", "")


def test_a_tiny_run_has_lengths_in_proportion(c):
  c.data.text_window, c.long_short.min_context = 16_384, 1024
  small = config.tiny(c)
  assert (small.data.seq_len, small.data.text_window) == (512, 2048)
  assert small.long_short.min_context == 128


@pytest.mark.parametrize("name", CHOICES)
def test_other_texts_than_the_choices_are_refused(c, name):
  key = config.KEYS[name]
  for value in key.choices:
    put(c, name, value)
    config.check(c)
  put(c, name, "other")
  with pytest.raises(errors.UserError) as caught:
    resolve.check(c)
  message = f"{name}='other' is not allowed; choose one of {', '.join(key.choices)}"
  assert str(caught.value).startswith(message)


def test_a_boolean_is_not_a_number(c):
  c.batch_size, c.eval.every = True, False
  with pytest.raises(errors.UserError, match=r"batch_size=True .*\neval.every=False "):
    resolve.check(c)


def test_only_keys_without_a_default_may_be_unset(c):
  c.model.window = None
  config.check(c)
  c.seed = None
  with pytest.raises(errors.UserError, match="seed=None is not allowed"):
    config.check(c)


@pytest.mark.parametrize("value", ["a.jsonl", ("a.jsonl*2", "hub:a/b"), ["a.txt"]])
def test_sources_are_a_text_or_several(c, value):
  c.data.train = value
  config.check(c)


@pytest.mark.parametrize("value", [("a",), (True,), (1.0, 2)])
def test_a_tuple_has_whole_numbers(c, value):
  c.model.nope_layers = value
  with pytest.raises(errors.UserError, match=r"nope_layers=.* tuple of whole numbers"):
    config.check(c)


@pytest.mark.parametrize("value", [3, (1, 2), {"a": 1}])
def test_sources_are_nothing_else(c, value):
  c.data.train = value
  with pytest.raises(errors.UserError, match=r"data.train=.* a tuple of texts"):
    config.check(c)


def test_all_problems_are_reported_at_once(c):
  c.optim.beta2, c.checkpoint.keep, c.model.remat = 1.0, -1, "some"
  with pytest.raises(errors.UserError) as caught:
    resolve.check(c)
  assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
    "model.remat",
    "optim.beta2",
    "checkpoint.keep",
  ]


def test_keys_that_do_not_exist_are_refused(c):
  c.evals.passkey = dict(task="needle", every=100)  # names of evaluations are free
  config.check(c)
  c.data.seqlen = 512
  c.positons = config.ConfigDict({"skip_prob": 0.5})
  with pytest.raises(errors.UserError) as caught:
    config.check(c)
  assert "'data.seqlen'; did you mean data.seq_len?" in str(caught.value)
  assert "'positons.skip_prob'; did you mean positions.skip_prob?" in str(caught.value)


def test_keys_that_are_missing_are_refused(c):
  del c.positions.chunks
  with pytest.raises(errors.UserError, match=r"positions.chunks; .*config.default\(\)"):
    config.check(c)


def test_a_section_is_checked_by_itself():
  config.check_section("lora", {"rank": np.int64(4), "alpha": 1})  # any kind of number
  with pytest.raises(errors.UserError, match=r"lora.rank=-1 .*at least 0"):
    config.check_section("lora", {"rank": -1, "alpha": 1.0})


def test_choices_are_those_of_the_code():
  choices = lambda name: set(config.KEYS[name].choices)
  strategies = {*positions.DO_SKIP, *baselines.METHODS, "endprompt", "logo"}
  assert choices("positions.strategy") == strategies
  assert choices("model.family") == set(families.TABLE)
  assert choices("attention.backend") == {"auto", *backends.BACKENDS}
  assert choices("data.text_blocks") == set(text.BLOCKS)
  assert config.KEYS["lora.targets"].default == ",".join(lora.MATRICES)
  mesh = [name for name in config.KEYS if name.startswith("mesh.")]
  assert mesh == [f"mesh.{axis}" for axis in sharding.AXES]
  shape = {f"model.{name}" for name in resolve.SHAPE_FIELDS}
  assert shape <= config.KEYS.keys()


def test_allowed_values_in_words():
  words = lambda **allowed: config_keys.key(1, "Of a test.", **allowed).allowed()
  assert words() == ""
  assert words(at_least=0) == "at least 0"
  assert words(at_least=0, at_most=1) == "from 0 to 1"
  assert words(above=0, below=2**30) == "above 0 and below 2^30"
  assert words(at_least=1, at_most=2**31 - 1) == "from 1 to 2^31 - 1"
  assert words(at_most=10_000) == "at most 10,000"
  assert words(at_least=1, or_value=-1) == "at least 1, or -1"
