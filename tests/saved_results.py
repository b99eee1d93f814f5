"""Folders of evaluations, as the runner writes them."""

import json

from skipalign_jax.evals.longbench import task as longbench_task

ROPE = {"kind": "ntk", "theta": 5e5, "factor": 8.0}


def save(folder, task, summary, model="llama", options=None, items=(), **changes):
  """A folder as the runner writes it."""
  protocol = {
    "task": task,
    "model": model,
    "rope": ROPE,
    "window": 4096,
    "compute_dtype": "bfloat16",
    "limit": 0,
    "options": options or {},
    "skipalign_jax": "0.1.0",
  }
  content = {
    "protocol": protocol | changes,
    "notes": changes.pop("notes", []),
    "summary": summary,
    "items": list(items),
  }
  content["protocol"].pop("notes", None)
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
  return str(folder)


def long_summary(scores, options=None, sizes=None):
  """The summary of LongBench sets; all records of a set have one score."""
  options = options or longbench_task.Options()
  sizes = longbench_task.expected(options.e) | (sizes or {})
  records = [
    dict(set=name, score=score / 100, length=5000, truncated=False, prompts="official")
    for name, score in scores.items()
    for _ in range(sizes[name])
  ]
  return longbench_task.summarize(options, records)


WHOLE = dict(zip(longbench_task.expected(False), range(10, 80, 5), strict=True))
OPTIONS = {"e": False, "max_length": 15_500, "prompts": "/a", "datasets": "all"}
