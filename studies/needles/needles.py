"""Measures of a model: needles, losses by position, long-short misalignment."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import transformers

from skipalign_jax.evals import misalignment
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import reference
from skipalign_jax.model import inference, rope
from studies.needles import recipes, words

ROWS = 64  # haystacks per batch; one number, so that few shapes are compiled
DEPTHS = 5  # equal parts of the haystack


def open_subject(
  model: pathlib.Path, window: int, target: int | None
) -> subject_lib.Subject:
  """The model of a workdir, ready for evaluation.

  Args:
    model: the workdir.
    window: W.
    target: NTK target in windows for a base: None for the model's own rope, 1 for no
      scaling.
  """
  opened = reference.open_model(str(model))
  config = opened.config
  if target is not None and target > 1:
    scaled = rope.RopeConfig("ntk", config.rope.theta, float(target), window)
    config = dataclasses.replace(config, rope=scaled, window=target * window)
  engine = inference.Engine(reference.load_params(opened), config, "float32")
  return subject_lib.Subject(
    engine,
    reference.load_tokenizer(str(model)),
    {},
    batch_tokens=0,
    eos_ids=opened.eos_ids,
  )


def encode(
  tokenizer: transformers.PreTrainedTokenizerFast, text: Sequence[str]
) -> list[int]:
  """One id per word.

  Raises:
    AssertionError: the tokenizer makes another number of tokens.
  """
  ids = tokenizer.encode(" ".join(text), add_special_tokens=False)
  assert len(ids) == len(text), (len(ids), len(text))
  return ids


def find(
  subject: subject_lib.Subject,
  seed: int,
  kind: int,
  form: str,
  length: int,
  count: int,
  per_question: int = 1,
) -> dict[str, Any]:
  """Searches needles in `count` haystacks of a length.

  A question is a hit if greedy decoding gives its whole answer, after the right answers
  to the questions before it.

  Args:
    subject: the model.
    seed, kind, form, length, per_question: see `words.haystack`.
    count: number of haystacks.

  Returns:
    `hits`: per haystack a string with 0 or 1 per question. `depths`: [hits, questions]
    per part of the haystack in which the fact is. `words`: number of answers whose keys
    were right, and whose values were, each word predicted after the right words.
  """
  stacks = [
    words.haystack(seed, i, kind, form, length, per_question) for i in range(count)
  ]
  hits, depths, right = [], np.zeros((DEPTHS, 2), int), np.zeros(2, int)
  for start in range(0, count, ROWS):
    batch = stacks[start : start + ROWS]
    tokens = [encode(subject.tokenizer, stack.words) for stack in batch]
    first = [stack.answers[0][0] for stack in batch]
    scored = subject.engine.score(tokens, first)
    for stack, begin, (_, likeliest) in zip(batch, first, scored, strict=True):
      found = [bool(likeliest[a - begin : b - begin].all()) for a, b in stack.answers]
      hits.append("".join(str(int(hit)) for hit in found))
      for a, b in stack.answers:
        answer = likeliest[a - begin : b - begin]
        right += (answer[::2].all(), answer[1::2].all())
      for hit, depth in zip(found, stack.depths, strict=True):
        depths[min(int(depth * DEPTHS), DEPTHS - 1)] += (hit, 1)
  return {"hits": hits, "depths": depths.tolist(), "words": right.tolist()}


def loss_by_position(
  subject: subject_lib.Subject, seed: int, settings: recipes.Settings, count: int
) -> dict[str, Any]:
  """Mean −log p, nats, of filler and of answers in long texts, by position.

  Parts end at the tested lengths. The entropy of filler is log(4) = 1.386.
  """
  longest = max(settings.tested) * settings.window
  ends = [length * settings.window for length in settings.tested]
  texts = [words.text(seed, i, longest, True, words.TEST).split() for i in range(count)]
  scored = subject.engine.score(
    [encode(subject.tokenizer, text) for text in texts], [1] * count
  )
  found: dict[str, Any] = {"ends": ends}
  for name in ("filler", "answers"):
    sums = np.zeros((len(ends), 2))
    for text, (log_p, _) in zip(texts, scored, strict=True):
      for place, word in enumerate(text[1:], 1):
        is_answer = word.startswith("v")
        if is_answer if name == "answers" else word.startswith("w"):
          sums[np.searchsorted(ends, place, side="right")] += (-log_p[place - 1], 1)
    found[name] = (sums[:, 0] / np.maximum(sums[:, 1], 1)).tolist()
  return found


def misaligned(
  subject: subject_lib.Subject, chats: pathlib.Path, length: int, samples: int
) -> dict[str, float]:
  """Long-short misalignment at answers of long dialogues; see evals/misalignment.py."""
  options = misalignment.Options(str(chats), str(length), samples)
  items = misalignment.items(options, subject)
  records = []
  for start in range(0, len(items), 16):
    batch = items[start : start + 16]
    measured = misalignment.measure(options, subject, batch)
    records += [i.record | m for i, m in zip(batch, measured, strict=True)]
  summary = misalignment.summarize(options, records)
  return {name: summary[name]["mean"] for name in ("sce", "symmetric_kl")}
