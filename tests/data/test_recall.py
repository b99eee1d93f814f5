"""The built-in dialogues: pure, varied, and answerable only by looking back."""

import re

from skipalign_jax.data import recall, schemas

COUNT = 500


def test_record_is_a_function_of_seed_and_index():
  assert recall.record(3, 7) == recall.record(3, 7)
  assert recall.record(3, 7) != recall.record(4, 7)
  texts = {str(recall.record(0, i)["messages"]) for i in range(COUNT)}
  assert len(texts) > 0.99 * COUNT


def test_dialogues_have_two_to_eight_turns():
  turns = set()
  for i in range(COUNT):
    messages = schemas.dialogue_of(recall.record(0, i), 10_000).messages
    turns.add(sum(message.role == "user" for message in messages))
  assert turns == set(range(2, 9))


def test_no_placeholder_is_left():
  for i in range(COUNT):
    assert not re.search("[{}]", str([*recall.record(0, i)["messages"][0].values()]))
    for message in recall.record(0, i)["messages"]:
      assert "{" not in message["content"]


def test_last_answer_is_in_the_first_message():
  """The last question is about a fact in the first message."""
  for i in range(COUNT):
    messages = recall.record(0, i)["messages"]
    first = messages[0]["content"]
    words = [w.strip(".") for w in messages[-1]["content"].split()]
    # The value ends the answer, or comes right before "on <day>".
    assert words[-1] in first, (first, messages[-1])
