"""Benchmarks from files, for machines without the hub, with the records of the hub.

FOLDER/
  mmlu/SUBJECT_{test,dev}.csv    question,choice0,choice1,choice2,choice3,answer (0–3)
  bbh/TASK.json                  as suzgunmirac/BIG-Bench-Hard has it
  human_eval/HumanEval.jsonl.gz  as openai/human-eval has it
  tydiqa/*.json, *.jsonl         gold passages: SQuAD's JSON, or records, one per line,
                                 with id (LANGUAGE-…), context, question and answers; a
                                 file with "train" in its name has the examples
  babilong/QA.jsonl              qa1, …: input, question and target, of one length
  longbench2/SUBSET.jsonl        academic_multi, …, as LongBench v2 has its records
  infinitebench/SPLIT.jsonl      passkey, …, as lm_eval names the splits: id, context,
                                 input, answer and options

lm_eval's RULER makes its own prompts and cannot be read from files: `evaluate ruler`.
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from skipalign_jax.runtime import errors, json_limits, paths, untrusted

if TYPE_CHECKING:
  import datasets


def read(
  folder: str, dataset: str, subset: str, language: str = "", split: str = ""
) -> datasets.DatasetDict | None:
  """The splits of a data set of the hub, from files; None if there are no files.

  Args:
    folder: see above.
    dataset: its name on the hub, such as cais/mmlu.
    subset: of it.
    language: of TyDiQA; "" takes all.
    split: of BABILong and InfiniteBench, which have a split for each task.

  Raises:
    UserError: no such folder, files that cannot be read, or a data set that has no
      reader here.
  """
  import datasets  # slow to load
  import pyarrow

  root = paths.given(folder, f"--local_data={folder}")
  if not root.is_dir():
    raise errors.UserError(f"--local_data={folder} is not a folder")
  readers = {
    "cais/mmlu": lambda: _mmlu(root / "mmlu", subset),
    "SaylorTwift/bbh": lambda: _bbh(root / "bbh", subset),
    "openai/openai_humaneval": lambda: _human_eval(root / "human_eval"),
    "google-research-datasets/tydiqa": lambda: _tydiqa(root / "tydiqa", language),
    "RMT-team/babilong-1k-samples": lambda: _babilong(root / "babilong", split),
    "recursal/longbench-v2": lambda: _longbench_v2(root / "longbench2", subset),
    "xinrongzhang2022/InfiniteBench": lambda: _infinitebench(
      root / "infinitebench", split
    ),
  }
  if not dataset:
    raise errors.UserError(
      "--local_data: this task of lm_eval makes its own prompts and reads no files; "
      "for RULER use `evaluate ruler`"
    )
  if dataset not in readers:
    raise errors.UserError(
      f"--local_data: {dataset} cannot be read from files; choose from "
      f"{', '.join(readers)}"
    )
  try:
    splits = readers[dataset]()
    if not splits:
      return None
    return datasets.DatasetDict(
      {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    )
  except (
    *untrusted.BROKEN,
    LookupError,
    TypeError,
    AttributeError,
    csv.Error,
    pyarrow.ArrowException,
  ) as error:
    raise errors.UserError(
      f"--local_data={folder}: files of {dataset} {subset} cannot be read: {error!r}"
    ) from error


def _mmlu(folder: pathlib.Path, subject: str) -> dict[str, list[dict[str, Any]]]:
  splits = {}
  for split in ("test", "dev"):
    path = folder / f"{subject}_{split}.csv"
    if not path.exists():
      return {}
    with path.open(encoding="utf-8", newline="") as file:
      splits[split] = [
        {
          "question": row["question"],
          "subject": subject,
          "choices": [row[f"choice{i}"] for i in range(4)],
          "answer": int(row["answer"]),
        }
        for row in csv.DictReader(file)
      ]
  return splits


def _bbh(folder: pathlib.Path, task: str) -> dict[str, list[dict[str, Any]]]:
  path = folder / f"{task}.json"
  if not path.exists():
    return {}
  examples = untrusted.read_json(path)["examples"]
  return {
    "test": [{"input": row["input"], "target": row["target"]} for row in examples]
  }


def _human_eval(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  path = folder / "HumanEval.jsonl.gz"
  if not path.exists():
    return {}
  return {"test": [untrusted.parse_json(line) for _, line in untrusted.lines(path)]}


def _lines(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """The records of NAME.jsonl; none if there is no such file."""
  path = folder / f"{name}.jsonl"
  if not path.exists():
    return []
  return [untrusted.parse_json(line) for _, line in untrusted.lines(path)]


def _babilong(folder: pathlib.Path, task: str) -> dict[str, list[dict[str, Any]]]:
  rows = [
    {key: row[key] for key in ("input", "question", "target")}
    for row in _lines(folder, task)
  ]
  return {task: rows} if rows else {}


def _longbench_v2(folder: pathlib.Path, subset: str) -> dict[str, list[dict[str, Any]]]:
  rows = [
    {
      "context": row["context"],
      "question": row["question"],
      "choices": [row[f"choice_{letter}"] for letter in "ABCD"],
      "answer": row["answer"],
    }
    for row in _lines(folder, subset)
  ]
  return {"train": rows} if rows else {}


def _infinitebench(folder: pathlib.Path, split: str) -> dict[str, list[dict[str, Any]]]:
  listed = lambda value: value if isinstance(value, list) else [value]
  rows = [
    {
      "id": row["id"],
      "context": row["context"],
      "input": row["input"],
      "answer": listed(row["answer"]),
      "options": row.get("options", []),
    }
    for row in _lines(folder, split)
  ]
  return {split: rows} if rows else {}


def _tydiqa(folder: pathlib.Path, language: str) -> dict[str, list[dict[str, Any]]]:
  splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
  for path in sorted(folder.glob("*.json*")):
    rows = splits["train" if "train" in path.name else "validation"]
    rows += [row for row in _questions(path) if row["id"].startswith(language)]
  return splits if splits["train"] and splits["validation"] else {}


def _questions(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Records of a file, in the form of the hub's secondary_task."""
  if path.suffix == ".jsonl":
    records = [untrusted.parse_json(line) for _, line in untrusted.lines(path)]
  else:
    articles = untrusted.read_json(path, json_limits.MAX_RESULT_VALUES)["data"]
    records = [
      {"title": article.get("title", ""), "context": paragraph["context"], **question}
      for article in articles
      for paragraph in article["paragraphs"]
      for question in paragraph["qas"]
    ]
  for number, record in enumerate(records):
    answers = record["answers"]
    if isinstance(answers, dict):
      answers = answers["text"]
    yield {
      "id": str(record["id"] if "id" in record else f"{record['language']}-{number}"),
      "title": record.get("title", ""),
      "context": record["context"],
      "question": record["question"],
      "answers": {"text": [x["text"] if isinstance(x, dict) else x for x in answers]},
    }
