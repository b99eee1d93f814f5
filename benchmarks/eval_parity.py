"""Replies of our evaluations next to those of transformers, on the same prompts.

python benchmarks/eval_parity.py --model=FOLDER --books=FILES [--items=10]
  [--lengths=2048,4096] [--tasks=ruler,babilong,mrcr] --out=FOLDER

FOLDER is a model in the format of Hugging Face (`convert export`), which both sides
read. Items are spread evenly over what a task has (its kinds of questions and lengths);
their prompts are token ids, so that both sides get the same ones. Both decode greedily,
in float32 by default, one prompt at a time: ours with `inference.Engine`, the other
with `model.generate` of transformers. What is compared: token after token of the reply.
Where they differ, transformers reads the common beginning again, and its logits say how
close the two tokens are. Each item is written to OUT/TASK.jsonl at once; the same
command resumes there. Needs torch (benchmarks/requirements.txt).
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import harness

from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals import tasks
from skipalign_jax.hf import reference
from skipalign_jax.model import inference


class Ours:
  def __init__(self, model: str, dtype: str):
    opened = reference.open_model(model)
    tokenizer = reference.load_tokenizer(model)
    params = reference.load_params(opened, dtype)
    engine = inference.Engine(params, opened.config, dtype)
    identity = subject_lib.identity(model, opened.config, tokenizer, dtype)
    self._subject = subject_lib.Subject(engine, tokenizer, identity, 1, opened.eos_ids)
    self._items: dict[str, items_lib.Item] = {}

  def items(self, task: str, options: dict[str, Any], count: int) -> list[str]:
    """Ids of `count` items of a task."""
    chosen = tasks.options(task, options)
    found = spread(tasks.module(task).items(chosen, self._subject), count)
    self._items = {item.id: item for item in found}
    return list(self._items)

  def prompt(self, id: str) -> dict[str, Any]:
    """Token ids of the prompt, and the limits of the reply."""
    query = self._items[id].query
    return {
      "prompt": list(query.tokens),
      "max_new_tokens": query.max_new_tokens,
      "stop_ids": list(query.stop_ids),
    }

  def reply(self, id: str) -> list[int]:
    """The greedy reply."""
    query = self._items[id].query
    steps = self._subject.engine.generate(
      [query.tokens], query.max_new_tokens, query.stop_ids
    )
    return [token for (token,) in steps]

  def score(self, task: str, id: str, replies: list[list[int]]) -> list[float]:
    """The score of each of some replies, by the task."""
    record = self._items[id].record
    module = tasks.module(task)
    texts = [self._subject.decode(reply) for reply in replies]
    if task == "ruler":
      return [module.score(record, text) for text in texts]
    if task == "babilong":
      asked = (record["question"], record["expected"])
      return [float(module.is_right(text, *asked)) for text in texts]
    return [module.score(text, record["code"], record["answer"]) for text in texts]


class Torch:
  def __init__(self, model: str, dtype: str):
    import torch
    import transformers

    self._torch = torch
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()

  def reply(
    self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]
  ) -> list[int]:
    """The greedy reply, without the token that ends it."""
    with self._torch.inference_mode():
      (found,) = self._model.generate(
        self._torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
      )
    reply = found[len(prompt) :].tolist()
    return reply[:-1] if reply and reply[-1] in stop_ids else reply

  def gap(self, tokens: list[int], one: int, other: int) -> float:
    """How much higher the logit of token `one` after `tokens` is than of `other`."""
    with self._torch.inference_mode():
      logits = self._model(self._torch.tensor([tokens]), logits_to_keep=1).logits
    return float(logits[0, -1, one] - logits[0, -1, other])


def spread(found: Sequence[Any], count: int) -> list[Any]:
  """`count` of these at equal distances, the first and the last among them."""
  count = min(count, len(found))
  last = len(found) - 1
  return [found[round(i * last / max(count - 1, 1))] for i in range(count)]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
  """Index of the first token that differs, or that only one reply has."""
  for i in range(min(len(one), len(other))):
    if one[i] != other[i]:
      return i
  return None if len(one) == len(other) else min(len(one), len(other))


def compare(
  ours: harness.Worker, theirs: harness.Worker, task: str, id: str
) -> dict[str, Any]:
  """Both replies to an item, where they part, and their scores."""
  asked = ours("prompt", id=id)
  mine, other = ours("reply", id=id), theirs("reply", **asked)
  at, gap = first_difference(mine, other), None
  if at is not None:
    end = asked["stop_ids"][0]  # what the shorter reply has there
    one, two = (reply[at] if at < len(reply) else end for reply in (other, mine))
    gap = theirs("gap", tokens=asked["prompt"] + mine[:at], one=one, other=two)
  scores = ours("score", task=task, id=id, replies=[mine, other])
  return {
    "id": id,
    "tokens": len(asked["prompt"]),
    "ours": mine,
    "theirs": other,
    "differ_at": at,
    "gap": gap,
    "scores": scores,
  }


def table(folder: pathlib.Path, names: Sequence[str]) -> str:
  """What is done, as Markdown."""
  rows = []
  for name in names:
    path = folder / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    differ = [one for one in found if one["differ_at"] is not None]
    parted = ", ".join(
      f"{x['id']}: token {x['differ_at']}, gap {x['gap']:.4f}" for x in differ
    )
    ours, theirs = (sum(one["scores"][i] for one in found) for i in range(2))
    rows.append(
      [
        name,
        len(found),
        len(found) - len(differ),
        sum(len(one["ours"]) for one in found),
        f"{ours:.2f}",
        f"{theirs:.2f}",
        parted or "nowhere",
      ]
    )
  heads = ["task", "items", "equal replies", "tokens", "score, ours", "theirs", "parts"]
  return harness.table(heads, rows)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="folder of a model")
  parser.add_argument("--books", required=True, help="files, commas between them")
  parser.add_argument("--out", required=True, help="folder")
  parser.add_argument("--tasks", default="ruler,babilong,mrcr")
  parser.add_argument("--lengths", default="2048,4096")
  parser.add_argument("--items", type=int, default=10, help="of each task")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  out, names = pathlib.Path(args.out), args.tasks.split(",")
  out.mkdir(parents=True, exist_ok=True)
  sides = dict(model=args.model, dtype=args.dtype)
  ours, theirs = harness.Worker(Ours, **sides), harness.Worker(Torch, **sides)
  for task in names:
    samples = -(-args.items // 4)  # mrcr has two kinds at each of two lengths
    options = dict(haystack=args.books, lengths=args.lengths, samples=samples)
    if task == "mrcr":
      options["needles"] = "2,4"  # eight have no room in 2048 tokens
    ids = ours("items", task=task, options=options, count=args.items)
    path = out / f"{task}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["id"] for line in lines}
    for id in ids:
      if id not in done:
        with path.open("a") as file:
          file.write(json.dumps(compare(ours, theirs, task, id)) + "\n")
        print(f"{task}: {id}", flush=True)
  ours.close()
  theirs.close()
  print(table(out, names))


if __name__ == "__main__":
  main()
