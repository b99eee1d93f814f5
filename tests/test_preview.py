import numpy as np

from skipalign_jax import preview


def test_samples_gives_blocks_with_their_positions():
  batch = dict(
    segment_ids=np.array([[1, 1, 1, 1, 2, 2, 0]]),
    block_ids=np.array([[0, 0, 1, 2, 0, 1, 0]]),
    is_response=np.array([[0, 0, 1, 0, 0, 1, 0]], bool),
  )
  positions = np.array([[0, 1, 2, 900, 0, 1, 0]])
  first, second = preview.samples(batch, positions)
  assert preview.describe(first) == "user 0-1, assistant 2-2, user 900-900"
  assert [span.tokens for span in first] == [2, 1, 1]
  assert preview.describe(second) == "user 0-0, assistant 1-1"
  assert preview.describe(first[::2]) == "text 0-1, text 900-900"


def test_draw_writes_a_picture(tmp_path):
  blocks = [preview.Span(False, 3, 0, 2), preview.Span(True, 5, 400, 404)]
  path = tmp_path / "positions.png"
  preview.draw([blocks], 1000, "title", path)
  assert path.read_bytes().startswith(b"\x89PNG")
