"""One table: parameter path <-> HF tensor name <-> GGUF tensor name.

Shapes: V vocab, D model, F ffn, Q = heads * head dim, G = kv heads * head dim,
n layers. Every matrix is stored [out, in] in all three worlds, so converting is
renaming and stacking, never transposing.
"""

from skipalign_jax.model import model_config
from skipalign_jax.runtime import errors

# path in the parameter tree, HF name, GGUF name; {i} is the layer. Paths under
# layers/ have the layers stacked on axis 0.
TABLE = (
  ("embed/weight", "model.embed_tokens.weight", "token_embd.weight"),
  (
    "layers/attn_norm/weight",
    "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.attn_norm.weight",
  ),
  *(
    (
      f"layers/attn/{short}/{leaf}",
      f"model.layers.{{i}}.self_attn.{short}_proj.{leaf}",
      f"blk.{{i}}.{gguf}.{leaf}",
    )
    for short, gguf in (
      ("q", "attn_q"),
      ("k", "attn_k"),
      ("v", "attn_v"),
      ("o", "attn_output"),
    )
    for leaf in ("weight", "bias")
  ),
  *(
    (
      f"layers/attn/{short}_norm/weight",
      f"model.layers.{{i}}.self_attn.{short}_norm.weight",
      f"blk.{{i}}.attn_{short}_norm.weight",
    )
    for short in ("q", "k")
  ),
  (
    "layers/mlp_norm/weight",
    "model.layers.{i}.post_attention_layernorm.weight",
    "blk.{i}.ffn_norm.weight",
  ),
  *(
    (
      f"layers/mlp/{short}/{leaf}",
      f"model.layers.{{i}}.mlp.{short}_proj.{leaf}",
      f"blk.{{i}}.ffn_{short}.{leaf}",
    )
    for short in ("gate", "up", "down")
    for leaf in ("weight", "bias")
  ),
  ("norm/weight", "model.norm.weight", "output_norm.weight"),
  ("lm_head/weight", "lm_head.weight", "output.weight"),
)

_HF_OF_PATH = {path: hf for path, hf, _ in TABLE}
_GGUF_OF_HF = {hf: gguf for _, hf, gguf in TABLE}


def expected_shapes(
  config: model_config.ModelConfig,
) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of `config`, layers stacked, in order."""
  V, D, F = config.vocab_size, config.embed_dim, config.ffn_dim
  Q = config.num_heads * config.head_dim
  G = config.num_kv_heads * config.head_dim
  layer: dict[str, tuple[int, ...]] = {"attn_norm/weight": (D,)}
  for short, shape in {"q": (Q, D), "k": (G, D), "v": (G, D), "o": (D, Q)}.items():
    layer[f"attn/{short}/weight"] = shape
    if config.o_bias if short == "o" else config.attention_bias:
      layer[f"attn/{short}/bias"] = shape[:1]
  if config.qk_norm:
    layer["attn/q_norm/weight"] = layer["attn/k_norm/weight"] = (config.head_dim,)
  layer["mlp_norm/weight"] = (D,)
  for short, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items():
    layer[f"mlp/{short}/weight"] = shape
    if config.mlp_bias:
      layer[f"mlp/{short}/bias"] = shape[:1]
  shapes: dict[str, tuple[int, ...]] = {"embed/weight": (V, D)}
  for name, shape in layer.items():
    shapes[f"layers/{name}"] = (config.num_layers, *shape)
  shapes["norm/weight"] = (D,)
  if not config.tie_embeddings:
    shapes["lm_head/weight"] = (V, D)
  return shapes


def is_stacked(path: str) -> bool:
  """Whether axis 0 of the parameter counts layers."""
  return path.startswith("layers/")


def hf_name(path: str, layer: int = 0) -> str:
  """HF tensor name of a parameter path; `layer` matters under layers/ only."""
  if path not in _HF_OF_PATH:
    raise errors.UserError(f"no HF name is known for the parameter {path!r}")
  return _HF_OF_PATH[path].format(i=layer)


def path_of_hf(name: str) -> tuple[str, int | None]:
  """Inverse of `hf_name`: (path, layer), the layer None outside layers/."""
  head, _, tail = name.removeprefix("model.layers.").partition(".")
  layer = int(head) if name.startswith("model.layers.") and head.isdigit() else None
  generic = name if layer is None else f"model.layers.{{i}}.{tail}"
  for path, hf, _ in TABLE:
    if hf == generic:
      return path, layer
  raise errors.UserError(f"{name!r} is not a tensor of a supported model")


def gguf_names(config: model_config.ModelConfig) -> dict[str, str]:
  """HF tensor name -> GGUF tensor name, for every tensor of `config`."""
  names = {}
  for path in expected_shapes(config):
    generic = _HF_OF_PATH[path]
    for i in range(config.num_layers if is_stacked(path) else 1):
      names[generic.format(i=i)] = _GGUF_OF_HF[generic].format(i=i)
  return names


def hf_shapes(config: model_config.ModelConfig) -> dict[str, tuple[int, ...]]:
  """HF tensor name -> shape of every tensor of `config`, layer after layer."""
  shapes = expected_shapes(config)
  outside = {p: s for p, s in shapes.items() if not is_stacked(p)}
  inside = {p: s for p, s in shapes.items() if is_stacked(p)}
  result = {hf_name("embed/weight"): outside.pop("embed/weight")}
  for i in range(config.num_layers):
    result |= {hf_name(path, i): shape[1:] for path, shape in inside.items()}
  return result | {hf_name(path): shape for path, shape in outside.items()}
