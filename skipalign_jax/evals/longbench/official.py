"""Which prompts are LongBench's own, character by character.

This package does not contain the texts, only their checksums.
"""

import hashlib
from collections.abc import Callable
from typing import Any

# Of the text with {context} and {input}: SHA-256, first 16 digits; tokens of the reply.
PROMPTS = {
  "narrativeqa": ("aada7ed24b06abac", 128),
  "qasper": ("0fbdd123fe7f83d6", 128),
  "multifieldqa_en": ("20b4666a2de8a1f7", 64),
  "hotpotqa": ("9ec4ae308865bd0c", 32),
  "2wikimqa": ("9ec4ae308865bd0c", 32),
  "musique": ("9ec4ae308865bd0c", 32),
  "gov_report": ("91c25d585b189ced", 512),
  "qmsum": ("dca23b678fe0183b", 512),
  "multi_news": ("2af3f28c40b902e6", 512),
  "trec": ("0eff8bebdba99d91", 64),
  "triviaqa": ("00a802e6377e72fc", 32),
  "samsum": ("a68d884234907eef", 128),
  "passage_count": ("986550b6c61009c6", 32),
  "passage_retrieval_en": ("39b96b7fa52bdd2a", 32),
  "lcc": ("6a1f24cf0bb83cd9", 64),
  "repobench-p": ("ee9ec182ea5ffeb7", 64),
}

Fill = Callable[[dict[str, Any]], str]


def has_text(name: str, fill: Fill) -> bool:
  """Whether the prompt of a set has LongBench's text.

  Args:
    name: of the set, without _e.
    fill: record → text of the prompt.
  """
  text = fill({"context": "{context}", "input": "{input}"})
  return hashlib.sha256(text.encode()).hexdigest()[:16] == PROMPTS[name][0]


def is_official(name: str, fill: Fill, max_new_tokens: int) -> bool:
  """Whether the prompt of a set has LongBench's text and length of the reply."""
  return has_text(name, fill) and max_new_tokens == PROMPTS[name][1]


def with_white_space(name: str, template: str, fill: Callable[[str], Fill]) -> Fill:
  """The prompt of a template from lm_eval, with LongBench's white space.

  lm_eval's files lack a newline between context and question in two sets, and the last
  space or newline in four. A template that also differs in other ways stays as it is.

  Args:
    name: of the set, without _e.
    template: for Jinja.
    fill: template → (record → text of the prompt).
  """
  variants = (
    template,
    template + " ",
    template + "\n",
    template.replace("{{context}}\n{{question}}", "{{context}}\n\n{{question}}"),
  )
  fills = [fill(variant) for variant in variants]
  return next((one for one in fills if has_text(name, one)), fills[0])
