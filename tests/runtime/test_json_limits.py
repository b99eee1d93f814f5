"""JSON of unknown origin: counted before it is parsed, then as strict as UTF-8."""

import json
import sys

import pytest

from skipalign_jax.runtime import errors, files, json_limits, untrusted

LISTS = "[" + "[]," * 50 + "[]]"


@pytest.fixture
def few(monkeypatch):
  """At most ten values; nothing that has more may reach the parser."""

  def never(*args, **kwargs):
    raise AssertionError("parsed")

  monkeypatch.setattr(json, "loads", never)
  return 10


@pytest.mark.parametrize(
  "text",
  [
    LISTS,
    f'{{"a": {LISTS}}}',
    "[" + "{}," * 50 + "1]",
    "[" + "0," * 50 + "0]",
    "[" + '"",' * 50 + '""]',
    "[" + '"\\\\",' * 50 + '""]',  # each string is one escaped backslash
    "{" + ",".join(f'"{i}":0' for i in range(50)) + "}",
    "[" * 50 + "]" * 50,
    '"' + "," * 50,  # a string that does not end
  ],
)
def test_many_values_are_refused_before_they_are_parsed(few, text):
  for one in (text, text.encode()):
    with pytest.raises(ValueError, match="more than 10 values"):
      untrusted.parse_json(one, few)


def test_what_is_in_strings_does_not_count():
  value = {"a": ["[{,", '",[', "\\", '\\",{[' * 40, "\n,,,"], "[,": ","}
  for text in (json.dumps(value), json.dumps(value).encode()):
    assert untrusted.parse_json(text, 12) == value


def test_escaped_quotes_are_not_ends_of_strings():
  json_limits.check('["' + '\\",' * 1000 + '"]', 2)
  json_limits.check(b'["' + b"\\\\\\\\," * 1000 + b'"]', 2)


@pytest.mark.parametrize("depth", [json_limits.MAX_DEPTH, json_limits.MAX_DEPTH + 1])
@pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}")])
def test_depth(depth, ends):
  text = ends[0] * depth + "1" + ends[1] * depth
  if depth > json_limits.MAX_DEPTH:
    with pytest.raises(ValueError, match="nested too deeply"):
      untrusted.parse_json(text)
  else:
    untrusted.parse_json(text)


def test_integers_fit_a_float():
  longest = "9" * json_limits.MAX_DIGITS
  assert float(untrusted.parse_json(longest)) < sys.float_info.max
  for text in ("1" + longest, "-1" + longest, "1" * 5000):
    with pytest.raises(ValueError, match=r"a number of [0-9,]+ digits"):
      untrusted.parse_json(f'{{"a": [{text}]}}')


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[1]", "not a JSON object"),
    (b'{"a": "\\ud800"}', "surrogates not allowed"),
    (b'{"\\uDFFF": 1}', "surrogates not allowed"),
    (b'{"a": 1e999}', "a is NaN or infinite"),
    (b'{"a": [NaN]}', "a.0 is NaN or infinite"),
    (b"\x1f\x8b\x08\x00rest", "not valid JSON"),  # gzip that is cut
  ],
)
def test_files_of_ours(tmp_path, content, message):
  path = tmp_path / "x.json"
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=f"x.json: .*{message}"):
    files.read_json(path)


def test_whole_surrogate_pairs_and_infinite_numbers_of_models(tmp_path):
  path = tmp_path / "x.json"
  path.write_bytes(b'{"a": "\\ud83d\\ude00", "limit": [0.0, Infinity]}')
  found = files.read_json(path, finite=False)
  assert found == {"a": "\U0001f600", "limit": [0.0, float("inf")]}


def array_of(tmp_path, text):
  path = tmp_path / "x.json"
  path.write_text(text, encoding="utf-8")
  return [item for _, item in untrusted.array_items(path)]


def test_items_of_an_array_in_small_blocks(tmp_path, monkeypatch):
  items = [{"a": [1, "],"]}, 12345, "x\u00e9\U0001f600", [], -0.5, None, [[]], {}] * 9
  for block in (3, 7, 8, 1 << 20):
    monkeypatch.setattr(untrusted, "_BLOCK", block)
    for indent in (None, 2):
      assert array_of(tmp_path, " \n" + json.dumps(items, indent=indent)) == items
    assert array_of(tmp_path, "[ ] ") == []


def test_items_of_an_array_do_not_copy_the_rest(tmp_path, monkeypatch):
  texts, real = [], untrusted._item

  def item(text, at, number):
    if not texts or texts[-1] is not text:
      texts.append(text)
    return real(text, at, number)

  monkeypatch.setattr(untrusted, "_item", item)
  assert len(array_of(tmp_path, json.dumps([0] * 1000))) == 1000
  assert len(texts) == 1


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[1, [" + "[]," * 600 + "[]]]", "more than 500 values"),
    ("[" + "[" * 200 + "]" * 200 + "]", "item 1.*nested too deeply"),
    ("[0, " + "1" * 400 + "]", "item 2.*a number of 400 digits"),
    ("[1, 2", "item 2 .*not valid JSON"),
    ("[1 2]", "item 1 .*not valid JSON"),
    ("[1] 2", "something follows"),
    ("{}", "does not begin with"),
  ],
)
def test_bad_arrays(tmp_path, monkeypatch, text, message):
  monkeypatch.setattr(untrusted, "_BLOCK", 8)
  limited = json_limits.check
  monkeypatch.setattr(json_limits, "check", lambda text: limited(text, 500))
  with pytest.raises(ValueError, match=message):
    array_of(tmp_path, text)
