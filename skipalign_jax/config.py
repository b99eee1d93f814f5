"""Experiment configs: every key with its default, variants, and validation.

A file in `configs/` starts from `default()`, changes what its experiment is
about, and hands the `:variant` argument to `apply_variant`. No module reads a
key that is not declared here, so the resolved config is the whole recipe.
"""

import re
from typing import Any

import ml_collections

from skipalign_jax.runtime import errors

ConfigDict = ml_collections.ConfigDict


def optional(kind: type) -> Any:
  """A key that may stay None but, when set, has the given type."""
  return ml_collections.config_dict.placeholder(kind)


def text_or_tuple(value: str) -> Any:
  """A key that holds a string, or a tuple of strings."""
  return ml_collections.FieldReference(value, field_type=object)


def default() -> ConfigDict:
  """All keys. Values are the SkipAlign paper's recipe where it states one."""
  c = ConfigDict()
  c.seed = 0
  c.batch_size = 128  # rows per optimizer step, all devices (Tülu 2's value)
  c.grad_accum = 1  # microbatches per step; divides batch_size
  c.steps = optional(int)  # exactly one of steps and epochs
  c.epochs = optional(int)
  c.log_every = 1  # steps between records in metrics.jsonl

  # Where the weights come from: hub id, HF folder, .gguf file, workdir[@step].
  # Empty trains from scratch and needs every shape field below; otherwise the
  # fields come from the reference, and a value set here must agree with it.
  c.model = ConfigDict()
  c.model.init_from = ""
  c.model.vocab_size = optional(int)
  c.model.num_layers = optional(int)
  c.model.embed_dim = optional(int)
  c.model.ffn_dim = optional(int)
  c.model.num_heads = optional(int)
  c.model.num_kv_heads = optional(int)
  c.model.head_dim = optional(int)
  c.model.norm_eps = optional(float)
  c.model.tie_embeddings = optional(bool)
  c.model.attention_bias = optional(bool)  # on q, k, v and, but for qwen2, o
  c.model.mlp_bias = optional(bool)
  c.model.window = optional(int)  # positions the model was built for
  c.model.family = optional(str)  # mistral, qwen2, qwen3, smollm3; from scratch llama
  c.model.nope_layers = optional(tuple)  # layers without rope; smollm3 only
  c.model.compute_dtype = "bfloat16"  # master weights are always float32
  c.model.remat = "full"  # none | dots (keep products) | full (keep layer inputs)

  # "model" keeps what the reference says. ntk, linear, yarn and llama3 scale it
  # to target_length positions, by default to positions.max_position.
  c.rope = ConfigDict()
  c.rope.kind = "model"
  c.rope.theta = optional(float)  # base when training from scratch
  c.rope.target_length = optional(int)

  # A source is "builtin:recall[:N]", "builtin:text[:N]", "hub:NAME[:SPLIT]" or a
  # .jsonl, .jsonl.gz, .parquet, .txt or .txt.gz file; "*w" behind it repeats it w
  # times an epoch. Several are separated by commas, or stand in a tuple:
  # ("a.jsonl*2", "hub:org/chats"). A record with messages is a chat, one with a text
  # column (and each .txt file) a document, cut into pieces of seq_len tokens.
  c.data = ConfigDict()
  c.data.train = text_or_tuple("builtin:recall")
  c.data.eval = text_or_tuple("holdout:64")  # source, "holdout:N" of train, or ""
  c.data.seq_len = 4096
  c.data.packing = False  # several samples a row, each attending to itself
  c.data.packing_mask = True  # False: a packed row is one sample (LongChat's way)
  # "sorted" puts samples of like length into a batch and shuffles the batches
  # (LongAlign); a batch is as long as the first of `buckets` that holds it.
  c.data.batching = "shuffled"
  c.data.text_blocks = "none"  # what may skip in a text: none, sentences, paragraphs
  # Tokens of a piece of text, and of a row, that the step crops to seq_len (PoSE,
  # CREAM); 0: pieces of seq_len. Only for plain text, unpacked and shuffled.
  c.data.text_window = 0
  c.data.template = "model"  # "model": the tokenizer's own; "tulu"
  c.data.tokenizer = ""  # reference to take the tokenizer from; "bytes"; "": model's
  c.data.system_prompt = ""  # put before samples that have none
  c.data.max_bad_fraction = 0.01  # of unusable records; more stops the run
  c.data.max_message_bytes = 1_000_000  # longer messages make a chat unusable
  c.data.workers = 0  # Grain worker processes a host; 0 reads in a thread
  c.data.cache_dir = ""  # tokenized samples; "": ~/.cache/skipalign_jax

  c.positions = ConfigDict()
  # contiguous | skip_all | skip_inner | skip_outer; of other papers: pose | randpos |
  # cream. LongRecipe is skip_all, skip_prob 1, uniform gaps, on sentences.
  c.positions.strategy = "skip_outer"
  c.positions.max_position = 100_000  # L: positions stay below it
  c.positions.skip_prob = 0.5  # p
  c.positions.prob_per = "block"  # eq. 4's ε for each block, or one a "sample"
  c.positions.resample = "never"  # a new draw every "epoch", or "never"
  c.positions.gaps = "sequential"  # the paper's eq. 3, or "uniform" layouts
  c.positions.chunks = 2  # of PoSE
  c.positions.skip_below = 0  # longer samples stay as they are; 0: none does

  # Long-Short Alignment (arXiv 2506.11769): the answer of a short context is to be
  # that of the long one. Costs a second forward and backward pass.
  c.long_short = ConfigDict()
  c.long_short.alpha = 0.0  # its weight; 0 is off, the paper's best are 0.1 to 0.3
  c.long_short.stop_gradient = "none"  # the side taken as given: none | long | short
  c.long_short.min_context = 0  # tokens that the short context has at least

  # W x + alpha/rank · B (A x), only A and B trained. W is kept as lora.base says;
  # int8, int4 and nf4 need the extra `lora`. Adapters are float32 like all masters.
  c.lora = ConfigDict()
  c.lora.rank = 0  # 0 trains all weights
  c.lora.alpha = 16.0
  c.lora.targets = "q,k,v,o,gate,up,down"  # linear layers that have adapters
  c.lora.base = "bfloat16"  # frozen weights: bfloat16 | int8 | int4 | nf4

  c.optim = ConfigDict()
  c.optim.learning_rate = 1e-5
  c.optim.warmup_fraction = 0.03  # linear warm-up, then linear decay to 0
  c.optim.beta1 = 0.9
  c.optim.beta2 = 0.999
  c.optim.eps = 1e-8
  c.optim.weight_decay = 0.0
  c.optim.clip_norm = 1.0  # global gradient norm; 0 leaves gradients alone
  c.optim.max_nonfinite_steps = 3  # NaN steps in a row: skipped, then stop

  # auto: cudnn on NVIDIA (triton for packed rows), splash on TPU, else blockwise.
  c.attention = ConfigDict()
  c.attention.backend = "auto"  # or xla (all L x L scores), or one of these names

  # "token" averages over all targets. "sequence" averages each sample first and then
  # the samples (LongAlign, 2401.18058). Held-out losses are token means always.
  c.loss = ConfigDict()
  c.loss.reduction = "token"
  c.loss.chunk = 512  # tokens a row whose logits exist at one time

  c.eval = ConfigDict()
  c.eval.every = 100  # steps between held-out losses; 0 only at the end

  # Tasks of `evaluate` during training: name → dict(task=…, every=steps, limit=0,
  # batch_tokens=16384 and the task's options); once before and once at the end, too.
  # c.evals.passkey = dict(task="needle", every=100, lengths="1024,2048")
  c.evals = ConfigDict()

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 500  # steps; 0 saves at the end only
  c.checkpoint.keep = 2  # latest ones
  c.checkpoint.keep_best = True  # and the one of the lowest held-out loss

  # Devices along each axis; -1 takes what is left. fsdp shards parameters,
  # gradients and Adam's moments as ZeRO-3 does; tensor splits heads and ffn;
  # context splits the places of a row, for rows that do not fit one device.
  c.mesh = ConfigDict()
  c.mesh.data = 1
  c.mesh.fsdp = -1
  c.mesh.tensor = 1
  c.mesh.context = 1
  return c


def tiny(c: ConfigDict) -> ConfigDict:
  """The same recipe on a byte-level model that trains in seconds anywhere."""
  c.model.init_from = ""
  m = c.model
  m.num_layers, m.embed_dim, m.ffn_dim = 2, 64, 128
  m.num_heads, m.num_kv_heads, m.head_dim = 4, 2, 16
  m.norm_eps, m.tie_embeddings = 1e-5, True
  m.attention_bias = m.mlp_bias = False
  m.window, m.compute_dtype = 256, "float32"
  m.family, m.nope_layers = "llama", ()
  c.rope.theta = 10_000.0
  c.data.tokenizer, c.data.template = "bytes", "model"
  c.data.train, c.data.eval = _small(c.data.train), "holdout:8"
  short = min(c.data.seq_len, 512)
  c.data.text_window = c.data.text_window * short // c.data.seq_len
  c.data.seq_len = short
  c.batch_size, c.grad_accum, c.epochs, c.steps = 8, 1, None, 8
  c.optim.learning_rate = 3e-3
  c.eval.every, c.checkpoint.every = 4, 4
  return c


def _small(source: Any) -> str:
  """Built-in sources with 64 records each, as they were mixed; or recall dialogues."""
  texts = source.split(",") if isinstance(source, str) else source
  if all(text.strip().startswith("builtin:") for text in texts):
    return re.sub(r"(builtin:\w+)(:\d+)?", r"\1:64", ",".join(texts))
  return "builtin:recall:64"


def row_length(data: ConfigDict) -> int:
  """Tokens of a row of a training batch, before the step crops it."""
  return data.text_window or data.seq_len


def buckets(data: ConfigDict) -> tuple[int, ...]:
  """Lengths that the rows of a batch may have, rising; each compiles a step of its own.

  seq_len and, for sorted batches, its halvings down to an eighth, as long as they are
  whole tiles of the attention kernels (128).
  """
  halvings = 3 if data.batching == "sorted" else 0
  lengths = [data.seq_len]
  while len(lengths) <= halvings and lengths[0] % 256 == 0:
    lengths.insert(0, lengths[0] // 2)
  return tuple(lengths)


def max_packed(data: ConfigDict) -> int:
  """Samples that packing puts into a row at most."""
  return max(1, data.seq_len // 32) if data.packing else 1


def max_samples(data: ConfigDict) -> int:
  """Segments that a row holds at most; attention kernels need a bound."""
  return max_packed(data) if data.packing_mask else 1


VARIANTS = {"": lambda c: c, "tiny": tiny}


def apply_variant(c: ConfigDict, variant: str) -> ConfigDict:
  """Applies the part behind the colon of `--config=FILE:variant`."""
  if variant not in VARIANTS:
    known = ", ".join(name for name in VARIANTS if name)
    raise errors.UserError(f"unknown config variant {variant!r}; known: {known}")
  return VARIANTS[variant](c)
