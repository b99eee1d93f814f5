"""Floating-point operations that a model needs, from its shape.

Only products are counted (a multiply-add is two), as is usual for utilization figures;
softmax, norms and the optimizer are not.

Shapes: B batch, L length, N heads, H head dim.
"""

from skipalign_jax.model import model_config


def causal_pairs(length: int) -> int:
  """(query, key) pairs of a causal row: L(L+1)/2."""
  return length * (length + 1) // 2


def matrix_params(shape: model_config.ModelConfig) -> int:
  """Parameters that each token is multiplied with: layers and vocabulary head."""
  query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
  attention = 2 * shape.embed_dim * (query + kv)
  mlp = 3 * shape.embed_dim * shape.ffn_dim
  head = shape.vocab_size * shape.embed_dim
  return shape.num_layers * (attention + mlp) + head


def forward(shape: model_config.ModelConfig, rows: int, length: int) -> int:
  """FLOPs that a forward pass needs.

  2 · B L · (matrix parameters) + layers · B · L(L+1)/2 pairs · 4 N H: scores and
  weighted values, the causal half only. Packed rows need less: the masked pairs of
  different samples are counted too.
  """
  products = 2 * rows * length * matrix_params(shape)
  pairs = rows * causal_pairs(length) * shape.num_layers
  return products + pairs * 4 * shape.num_heads * shape.head_dim


def training(
  shape: model_config.ModelConfig, rows: int, length: int, adapters: int = 0
) -> int:
  """Model FLOPs of one step: three forward passes (gradients of both operands).

  Args:
    shape: of the model.
    rows: of the step.
    length: tokens of a row.
    adapters: parameters of adapters; if not 0, only these have a gradient: the model's
      own matrices cost two passes, attention and adapters three.
  """
  whole = 3 * forward(shape, rows, length)
  if not adapters:
    return whole
  return whole + 2 * rows * length * (3 * adapters - matrix_params(shape))


def generation(
  shape: model_config.ModelConfig, rows: int, length: int, new: int
) -> int:
  """FLOPs of the last `new` of `length` tokens per row: a prompt, a part, one token.

  The vocabulary head sees the last token only.
  """
  unseen = rows * (new - 1) * shape.vocab_size * shape.embed_dim
  products = 2 * (rows * new * matrix_params(shape) - unseen)
  pairs = causal_pairs(length) - causal_pairs(length - new)
  scores = rows * pairs * shape.num_layers
  return products + scores * 4 * shape.num_heads * shape.head_dim
