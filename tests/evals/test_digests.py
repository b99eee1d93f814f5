"""Digests of items do not change, so that older evaluations can be resumed."""

import pytest
import tiny_subject

from skipalign_jax.evals import items, tasks
from skipalign_jax.evals.lm_eval import queries

SUBJECT = tiny_subject.make(batch_tokens=1024, window=256)


@pytest.mark.parametrize(
  ("task", "options", "digest"),
  [
    ("needle", dict(lengths="300", depths="2"), "55cfbe011b15c125"),
    ("keys", dict(lengths="900", depths="2", rivals=True), "8874c4d151ce6839"),
    ("ruler", dict(tasks="vt,fwe", lengths="2500", samples=1), "e57b0cc4313ad2f1"),
    ("misalignment", dict(lengths="16", samples=2), "154f5f9fbd8df166"),
    ("perplexity", dict(length=64, documents=2), "8c1dddcb3a4968dd"),
  ],
)
def test_items_of_a_task(task, options, digest, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # names of files are part of an item
  (tmp_path / "text.txt").write_text("One thing after another. " * 40)
  source = {"misalignment": "source", "perplexity": "files"}.get(task)
  given = options | ({source: "text.txt"} if source else {})
  found = tasks.module(task).items(tasks.options(task, given), SUBJECT)
  assert items.digest(found) == digest


def test_items_of_lm_eval():
  found = [
    queries.Next((1, 2), (3, 4)),
    queries.Score((1, 2, 3), 1),
    queries.Reply((1, 2), 8, (0,), ("\n",), 0.5, 0.9),
  ]
  made = [queries.item(str(i), query) for i, query in enumerate(found)]
  assert items.digest(made) == "b6afa7a3cc9b8f04"
