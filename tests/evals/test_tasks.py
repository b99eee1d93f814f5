"""The table of tasks; that it imports none of them, `test_late_imports` checks."""

import pytest

from skipalign_jax.evals import suite, tasks


def test_a_task_is_imported_by_its_name():
  assert tasks.module("needle").__name__ == "skipalign_jax.evals.needle"


def test_every_task_has_options_with_a_comment_each():
  for module in (*map(tasks.module, tasks.TASKS), suite):
    fields = module.Options.__dataclass_fields__
    assert tasks.comments(module.Options).keys() == fields.keys()


@pytest.mark.parametrize("name", ["haystack", "lm_eval.task"])
def test_a_module_is_not_a_task(name):
  with pytest.raises(Exception, match=f"no task {name!r}"):
    tasks.module(name)
