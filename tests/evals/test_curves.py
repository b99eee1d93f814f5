"""Pictures of scores by length."""

import pytest

from skipalign_jax.evals import babilong, mrcr
from skipalign_jax.evals.ruler import task as ruler_task


@pytest.mark.parametrize(
  ("module", "name"), [(babilong, "babilong"), (mrcr, "mrcr"), (ruler_task, "ruler")]
)
def test_a_table_becomes_lines_where_it_has_lengths(module, name, tmp_path):
  rows = {"one": {"0": 1.0, "2048": 0.7, "16384": 0.2}, "without text": {"0": 0.5}}
  summary = {"mean_of": "11 of 13 tasks", "average": 0.5, "table": rows}
  results = {"protocol": {"model": "m", "window": 8192}, "summary": summary}
  (picture,) = module.draw(None, results, tmp_path)
  assert picture.name == f"{name}.png" and picture.stat().st_size > 5000
  summary["table"] = {"without text": {"0": 0.5}}
  assert module.draw(None, results, tmp_path) == []
