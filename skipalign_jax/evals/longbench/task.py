"""LongBench (2308.14508): answers, summaries, few-shot tasks and code from long texts.

SkipAlign's Table 1: the 14 English sets that are not synthetic, greedy decoding,
prompts of at most 15,500 tokens for a test at 16K. LongBench-E (--e=True) has 13 sets,
two of them synthetic, in three ranges of length.

As in LongBench's own code, a prompt that is too long loses its middle before the chat
template is applied; few-shot and code sets are prompted without a template; replies of
samsum end at a newline. Base models have no template: use --chat=False. Names of
special tokens in a text are text, and not the tokens as in LongBench's own code.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals, option_values, squad
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.longbench import data as longbench_data
from skipalign_jax.evals.longbench import metrics, official
from skipalign_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Set:
  """One of LongBench's data sets.

  Attributes:
    category: its column in SkipAlign's Table 1.
    metric: (prediction, gold, classes) → 0 to 1.
    size: number of its records in LongBench.
    size_e: number of its records in LongBench-E; 0 if it is not part of that.
    template: whether its prompts use the chat template.
    line: whether only the first line of a prediction is scored.
  """

  category: str
  metric: Callable[..., float]
  size: int
  size_e: int = 0
  template: bool = True
  line: bool = False


_SINGLE, _MULTI, _SUMMARIES = "S-Doc QA", "M-Doc QA", "Summ"
_FEW_SHOT, _CODE, SYNTHETIC = "Few-shot", "Code", "Synthetic"
CATEGORIES = (_SINGLE, _MULTI, _SUMMARIES, _FEW_SHOT, _CODE)  # of SkipAlign's Table 1


def _plain(metric: Callable[[str, str], float]) -> Callable[..., float]:
  return lambda prediction, gold, classes: metric(prediction, gold)


_QA, _ROUGE = _plain(squad.f1), _plain(metrics.rouge_l)
_SIMILARITY = _plain(metrics.code_similarity)
_RAW = {"template": False, "line": True}

SETS = {
  "narrativeqa": Set(_SINGLE, _QA, 200),
  "qasper": Set(_SINGLE, _QA, 200, 224),
  "multifieldqa_en": Set(_SINGLE, _QA, 150, 150),
  "hotpotqa": Set(_MULTI, _QA, 200, 300),
  "2wikimqa": Set(_MULTI, _QA, 200, 300),
  "musique": Set(_MULTI, _QA, 200),
  "gov_report": Set(_SUMMARIES, _ROUGE, 200, 300),
  "qmsum": Set(_SUMMARIES, _ROUGE, 200),
  "multi_news": Set(_SUMMARIES, _ROUGE, 200, 294),
  "trec": Set(_FEW_SHOT, metrics.classification, 200, 300, **_RAW),
  "triviaqa": Set(_FEW_SHOT, _QA, 200, 300, **_RAW),
  "samsum": Set(_FEW_SHOT, _ROUGE, 200, 300, **_RAW),
  "passage_count": Set(SYNTHETIC, _plain(metrics.count), 200, 300),
  "passage_retrieval_en": Set(SYNTHETIC, _plain(metrics.retrieval), 200, 300),
  "lcc": Set(_CODE, _SIMILARITY, 500, 300, template=False),
  "repobench-p": Set(_CODE, _SIMILARITY, 500, 300, template=False),
}
# By a record's `length`, in words.
BUCKETS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, float("inf"))}


@dataclasses.dataclass(frozen=True)
class Options:
  """Which records to evaluate, and how."""

  data: str = "hub"  # hub, a folder with NAME.jsonl or NAME.jsonl.gz, or a .zip file
  prompts: str = ""  # folder with dataset2prompt.json; by default from lm_eval
  tasks: str = "all"  # all, or names with commas between them
  max_length: int = 15_500  # tokens of a prompt; 3500 for 4K models, 31500 for 32K
  e: bool = False  # LongBench-E
  chat: bool = True  # use the chat template for the sets where LongBench does
  per_set: int = 0  # the first so many records of each set; 0: all records


def expected(e: bool) -> dict[str, int]:
  """The sets of the benchmark and how many records each has.

  LongBench: SkipAlign's 14 sets. LongBench-E: all its 13.
  """
  if e:
    return {name: one.size_e for name, one in SETS.items() if one.size_e}
  return {name: one.size for name, one in SETS.items() if one.category != SYNTHETIC}


def chosen(options: Options) -> list[str]:
  """The sets to evaluate, in the order of the table."""
  if options.tasks == "all":
    return list(expected(options.e))
  names = {name.strip() for name in options.tasks.split(",")}
  known = [name for name, one in SETS.items() if one.size_e or not options.e]
  unknown = sorted(names - set(known))
  if unknown:
    raise errors.UserError(
      f"--tasks: there is no set {unknown[0]!r} in LongBench{'-E' * options.e}; "
      f"choose from {', '.join(known)}"
    )
  return [name for name in known if name in names]


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per record.

  Raises:
    UserError: an unknown set, numbers out of range, or records or prompts that cannot
      be used.
  """
  option_values.at_least(options, max_length=2, per_set=0)
  names = chosen(options)
  prompts = longbench_data.prompts(options.prompts, names)
  own = [
    name
    for name in names
    if not official.is_official(name, prompts.fill[name], prompts.max_new_tokens[name])
  ]
  # The last token, as in LongBench: SentencePiece puts a space before a newline.
  newline = subject.encode("\n")[-1]
  found = []
  for name in names:
    file = name + ("_e" if options.e else "")
    records = longbench_data.records(options.data, file, options.per_set)
    for index, record in enumerate(records):
      whole = prompts.fill[name](record)
      chat = options.chat and SETS[name].template
      with _of_record(f"{file}/{index}"):
        text, before, after = truncate(subject, whole, options.max_length)
        tokens, _ = subject.encode_prompt(subject.chat(text) if chat else text, chat)
      samsum = name == "samsum"
      prompt = items_lib.Prompt(
        tuple(tokens),
        prompts.max_new_tokens[name],
        (*subject.stop_ids, newline) if samsum else subject.stop_ids,
        min_new_tokens=1 if samsum else 0,
      )
      about = {
        "set": name,
        "record": record.get("_id", index),
        "length": record["length"],
        "tokens_before": before,
        "tokens_after": after,
        "truncated": before > options.max_length,
        "answers": record["answers"],
        "prompts": prompts.source,
      }
      if name in own:
        about["official_prompt"] = False
      if name == "trec":
        about["classes"] = record["all_classes"]
      found.append(items_lib.of_prompt(f"{file}/{index}", prompt, **about))
  return found


@contextlib.contextmanager
def _of_record(where: str) -> Iterator[None]:
  """Names the record in errors of its prompt."""
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f"LongBench's record {where}: {error}") from error


def truncate(
  subject: subject_lib.Subject, text: str, max_length: int
) -> tuple[str, int, int]:
  """Removes the middle of a prompt that is too long: the task is at its ends.

  Args:
    subject: its tokenizer counts the tokens, with those around every text.
    text: the prompt, before a chat template is applied.
    max_length: in tokens. The first and the last max_length // 2 tokens stay, decoded
      without those around every text.

  Returns:
    The text, and its number of tokens before and after. Halves that are decoded and
    encoded again can have other numbers of tokens.
  """
  encode = functools.partial(subject.tokens, special=True, literal=True)
  tokens = encode(text)
  if len(tokens) <= max_length:
    return text, len(tokens), len(tokens)
  half = max_length // 2
  ends = tokens[:half].tolist(), tokens[-half:].tolist()
  text = "".join(map(subject.decode, ends))
  return text, len(tokens), len(encode(text))


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Predictions and their scores."""
  del options
  return [
    {"prediction": prediction, "score": score(item.record, prediction)}
    for item, prediction in zip(batch, items_lib.replies(subject, batch), strict=True)
  ]


def score(record: items_lib.Record, prediction: str) -> float:
  """The best score over the answers of a record, 0 to 1."""
  one = SETS[record["set"]]
  if one.line:
    prediction = metrics.first_line(prediction)
  classes = record.get("classes")
  return max(one.metric(prediction, gold, classes) for gold in record["answers"])


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Scores 0 to 100 with two digits: of sets, of categories, and of all.

  "average" is the mean over the evaluated sets. It compares with the paper's only if
  "complete" is true: all sets of the benchmark, with all their records and LongBench's
  own prompts. "lacks" lists what is missing. A category is the mean over its evaluated
  sets.
  """
  by_set: dict[str, list[items_lib.Record]] = {}
  for record in records:
    by_set.setdefault(record["set"], []).append(record)
  sets = {name: _percent(found) for name, found in by_set.items()}
  sizes = expected(options.e)
  lacks = [
    f"{name}: {len(found)} of {sizes[name]} records"
    for name, found in by_set.items()
    if name in sizes and len(found) != sizes[name]
  ]
  absent = [name for name in sizes if name not in by_set]
  other = [name for name in by_set if name not in sizes]
  lacks += [f"not evaluated: {', '.join(absent)}"] if absent else []
  lacks += [f"also counted: {', '.join(other)}"] if other else []
  own = [
    name for name, found in by_set.items() if not found[0].get("official_prompt", True)
  ]
  lacks += [f"prompts that differ from LongBench's: {', '.join(own)}"] if own else []
  categories = {}
  for category in (*CATEGORIES, SYNTHETIC):
    means = [sets[name]["mean"] for name in sets if SETS[name].category == category]
    if means:
      categories[category] = _mean(means)
  summary = {
    "average": _mean([found["mean"] for found in sets.values()]),
    "complete": not lacks,
    "lacks": lacks,
    "prompts": records[0]["prompts"],
    "truncated": sum(record["truncated"] for record in records),
    "categories": categories,
    "sets": sets,
  }
  return summary | (_buckets(by_set) if options.e else {})


def _percent(records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Mean in percent with two digits, as LongBench rounds it, and a 95 % interval.

  Wilson's interval if all scores are hits and misses. Other scores vary much less, so
  they have Student's interval.
  """
  scores = [record["score"] for record in records]
  hits = set(scores) <= {0.0, 1.0}
  found = intervals.of_scores(scores) if hits else intervals.of_shares(scores)
  for key in ("mean", "low", "high"):
    if found[key] is not None:
      found[key] = round(100 * found[key], 2)
  return found


def _buckets(by_set: dict[str, list[items_lib.Record]]) -> dict[str, Any]:
  """LongBench-E: scores of sets and their means by length; None without records."""
  sets_by_length: dict[str, dict[str, float | None]] = {}
  for name, records in by_set.items():
    sets_by_length[name] = {}
    for bucket, (low, high) in BUCKETS.items():
      scores = [r["score"] for r in records if low <= r["length"] < high]
      sets_by_length[name][bucket] = (
        _mean([100 * s for s in scores]) if scores else None
      )
  by_length = {}
  for bucket in BUCKETS:
    means = [found[bucket] for found in sets_by_length.values()]
    means = [mean for mean in means if mean is not None]
    by_length[bucket] = _mean(means) if means else None
  return {"by_length": by_length, "sets_by_length": sets_by_length}


def _mean(values: Sequence[float]) -> float:
  return round(float(np.mean(values)), 2)
