"""The config of a run: every key with its default, meaning and allowed values.

`SECTIONS` is the only list of the keys. `default` builds a config from it, `check`
refuses values that it does not allow, and `--help` and the documentation print it. No
module reads a key that is not in it, so the resolved config is the whole recipe.

A file in `configs/` starts from `default()`, changes what its experiment needs, and
passes the `:variant` argument to `apply_variant`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from skipalign_jax import config_keys
from skipalign_jax.runtime import errors

ConfigDict = ml_collections.ConfigDict
key, section = config_keys.key, config_keys.section

INT32 = 2**31 - 1  # the largest index or step number
POSITIONS = 2**24  # positions are below this: float32, in which they turn, has them all

# Defaults are the recipe of the SkipAlign paper where it states one. A default of None
# means that the key is unset.
SECTIONS = (
  section(
    "",
    "The run as a whole.",
    seed=key(0, "Seed of all random choices.", at_least=0, at_most=2**32 - 1),
    batch_size=key(
      128,
      "Rows per optimizer step, over all devices. The paper gives none; this is the "
      "value of Tülu 2.",
      at_least=1,
    ),
    grad_accum=key(
      1,
      "Microbatches per step, computed one after the other to save memory. Divides "
      "batch_size.",
      at_least=1,
    ),
    steps=key(
      None,
      "Optimizer steps of the run. Set either steps or epochs.",
      int,
      at_least=1,
      at_most=INT32,
    ),
    epochs=key(
      None,
      "Passes over the training data; every row of each is read, and empty rows fill "
      "the last batch. Set either steps or epochs.",
      int,
      at_least=1,
    ),
    log_every=key(1, "Steps between records in metrics.jsonl.", at_least=1),
    profile=key(
      "",
      "START:STOP writes XLA's trace of these steps to WORKDIR/profile, for xprof and "
      "TensorBoard. Empty: no trace.",
    ),
  ),
  section(
    "model",
    "The model that is trained. With init_from, unset keys follow the model that it "
    "names, and a value that is set must agree with it. Without, training starts from "
    "random weights and needs the keys from num_layers to window, and rope.theta.",
    init_from=key(
      "",
      "Where the weights come from: a name on the Hugging Face hub (hub:ORG/NAME, or "
      "ORG/NAME where there is no local ORG), a folder of that format, a .gguf file, "
      "or a workdir of train, with @STEP for one of its checkpoints. Empty: random "
      "weights.",
    ),
    vocab_size=key(
      None,
      "Entries of the vocabulary. From scratch, by default those of the tokenizer.",
      int,
      at_least=1,
      at_most=INT32,
    ),
    # Every tensor's name is listed in memory; no known model has 1000 layers.
    num_layers=key(None, "Decoder layers.", int, at_least=1, at_most=10_000),
    embed_dim=key(
      None, "Width of the residual stream.", int, at_least=1, at_most=INT32
    ),
    ffn_dim=key(None, "Width of the gated MLP.", int, at_least=1, at_most=INT32),
    num_heads=key(None, "Query heads.", int, at_least=1, at_most=INT32),
    num_kv_heads=key(
      None, "Key and value heads. Divides num_heads.", int, at_least=1, at_most=INT32
    ),
    head_dim=key(
      None, "Width of one head; an even number.", int, at_least=2, at_most=INT32
    ),
    norm_eps=key(None, "Epsilon of RMSNorm.", float, above=0, below=1),
    tie_embeddings=key(
      None, "Whether the output matrix is the embedding matrix.", bool
    ),
    attention_bias=key(
      None, "Biases on q, k and v and, except in the family qwen2, on o.", bool
    ),
    mlp_bias=key(None, "Biases on the three matrices of the MLP.", bool),
    window=key(
      None,
      "Number of positions that the model was built for.",
      int,
      at_least=1,
      at_most=INT32,
    ),
    family=key(
      None,
      "Architecture: a model_type of transformers. From scratch, by default llama.",
      str,
      choices=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    ),
    nope_layers=key(
      None, "Indices of the layers without rope (family smollm3 only).", tuple
    ),
    compute_dtype=key(
      "bfloat16",
      "Type of the activations and of matrix products. Master weights are always "
      "float32.",
      choices=("bfloat16", "float32"),
    ),
    remat=key(
      "full",
      "What the forward pass of a layer keeps for the backward pass. none: "
      "everything; dots: matrix products; full: only the input of the layer, the rest "
      "is computed again.",
      choices=("none", "dots", "full"),
    ),
  ),
  section(
    "rope",
    "Rotary position embeddings.",
    kind=key(
      "model",
      "model: as the model's own config has it. none: not scaled, nor in the model's "
      "own config. The others scale it from the model's window to target_length. "
      "Dynamic NTK is not possible: its base depends on the longest position so far, "
      "so it cannot be trained.",
      choices=("model", "none", "linear", "ntk", "yarn", "llama3"),
    ),
    theta=key(
      None, "Base of the frequencies. From scratch it must be set.", float, above=1
    ),
    target_length=key(
      None,
      "Number of positions that a scaled rope covers. By default "
      "positions.max_position, or the model's window if that is larger.",
      int,
      at_least=1,
      at_most=INT32,
    ),
  ),
  section(
    "data",
    "Samples and how they become rows of a batch. A source is builtin:recall[:N], "
    "builtin:text[:N], builtin:pairs[:N], hub:NAME[:[CONFIG:]SPLIT], a .jsonl, "
    ".ndjson, .json, .parquet or .txt file (all but .parquet may be .gz), a folder of "
    "them or of datasets' save_to_disk, or a pattern such as chats/*.jsonl. *w after a "
    "source repeats it w times per epoch. "
    "Several sources are separated by commas or given as a tuple: "
    '("a.jsonl*2", "hub:org/chats"). A '
    "record with messages is a chat. A record with a text column, and each .txt file, "
    "is a document, which is cut into pieces of seq_len tokens.",
    train=key("builtin:recall", "Sources of the training data.", object),
    eval=key(
      "holdout",
      "Held-out data: sources, holdout:N for N samples taken out of the training data, "
      "holdout for a tenth of them and at most 64 (none of fewer than 10), "
      "or empty for none.",
      object,
    ),
    seq_len=key(
      4096,
      "Tokens per row. data.overlong says what becomes of longer chats.",
      at_least=2,
      at_most=POSITIONS,
    ),
    overlong=key(
      "truncate",
      "What becomes of chats with more than seq_len tokens. truncate: the first "
      "seq_len tokens are used. split: they become several samples of whole exchanges; "
      "an exchange that is too long by itself is truncated. drop: they are left out. "
      "The report of the data has the share of tokens that is lost. Texts are always "
      "cut into pieces.",
      choices=("truncate", "split", "drop"),
    ),
    packing=key(False, "Put several samples into a row. Each attends only to itself."),
    packing_mask=key(
      True,
      "False: the samples of a packed row attend to each other, as one long sample (as "
      "in LongChat).",
    ),
    batching=key(
      "shuffled",
      "sorted: samples of similar length form a batch, and the batches are shuffled "
      "(LongAlign, 2401.18058). The rows of a batch are then as long as its longest "
      "sample needs: seq_len, or a half, a quarter or an eighth of it.",
      choices=("shuffled", "sorted"),
    ),
    text_blocks=key(
      "none",
      "What may skip in a document. none: the document is one block.",
      choices=("none", "sentences", "paragraphs"),
    ),
    text_window=key(
      0,
      "Tokens of a piece of text that the step crops to seq_len (strategies pose and "
      "cream). 0: pieces of seq_len tokens. Only for plain text that is not packed and "
      "is shuffled.",
      at_least=0,
      at_most=POSITIONS,
    ),
    template=key(
      "model",
      "Chat template. model: that of the tokenizer.",
      choices=("model", "tulu"),
    ),
    template_kwargs=key(
      "",
      "Values for variables of the chat template, such as enable_thinking=false, "
      "separated by commas, or a JSON object. The exported tokenizer has them too.",
    ),
    date=key(
      "",
      "Date that a chat template prints as today's, YYYY-MM-DD. Empty: the day of the "
      "run's first start.",
    ),
    rewritten=key(
      "last",
      "Chats whose earlier replies the template rewrites (most templates with "
      "thoughts do). last: only the last reply is learned. each: each reply is a "
      "sample of its own, after the text that it will be asked after.",
      choices=("last", "each"),
    ),
    learn_tool_calls=key(
      False,
      "Learn replies that call tools, with their calls. False: they are only read.",
    ),
    tokenizer=key(
      "",
      "Where the tokenizer comes from: a reference as in model.init_from, or bytes for "
      "one token per byte. Empty: as model.init_from.",
    ),
    system_prompt=key("", "System message added to chats that have none."),
    max_bad_fraction=key(
      0.01,
      "Share of unusable records that is accepted. More stop the run.",
      at_least=0,
      at_most=1,
    ),
    max_message_bytes=key(
      1_000_000,
      "Bytes of a message, or of a chat's tools. A chat with more is unusable.",
      at_least=1,
    ),
    ignore_keys=key(
      "",
      "Keys of records and of their turns, separated by commas, that are not read. "
      "Other unknown keys make a record unusable, because they may say what is to be "
      "learned.",
    ),
    workers=key(0, "Processes per host that read data. 0: a thread reads.", at_least=0),
    cache_dir=key(
      "", "Folder of the tokenized samples. Empty: ~/.cache/skipalign_jax."
    ),
  ),
  section(
    "positions",
    "Position ids of the training samples (SkipAlign, arXiv 2405.03939). L, p and the "
    "random number ε are those of the paper's equations.",
    strategy=key(
      "skip_outer",
      "Which blocks of a sample skip ahead. contiguous: none; skip_all: all; "
      "skip_inner: responses; skip_outer: instructions. Methods of other papers: "
      "pose, randpos, cream, endprompt, logo. Close to LongRecipe is skip_all with "
      "skip_prob=1 and gaps=uniform on data.text_blocks=sentences.",
      choices=(
        "contiguous",
        "skip_all",
        "skip_inner",
        "skip_outer",
        "pose",
        "randpos",
        "cream",
        "endprompt",
        "logo",
      ),
    ),
    max_position=key(
      100_000,
      "Every position is below this L.",
      at_least=1,
      below=POSITIONS,
    ),
    skip_prob=key(
      0.5, "Probability p that a block that may skip does.", at_least=0, at_most=1
    ),
    prob_per=key(
      "block",
      "Draw ε of equation 4 for each block, or once per sample.",
      choices=("block", "sample"),
    ),
    resample=key(
      "never",
      "never: a sample has the same positions in all epochs. epoch: new ones in each.",
      choices=("never", "epoch"),
    ),
    gaps=key(
      "sequential",
      "How long gaps are. sequential: equation 3, whose first gaps take most of the "
      "room; uniform: all layouts of the gaps are equally likely.",
      choices=("sequential", "uniform"),
    ),
    chunks=key(
      2,
      "Chunks per sample (strategy pose), or of what is before its last part (logo).",
      at_least=2,
    ),
    skip_below=key(
      0,
      "Samples of at least this number of tokens stay contiguous. 0: all may skip.",
      at_least=0,
    ),
    terminal=key(
      "turn",
      "What moves (strategies endprompt and logo). turn: the last instruction and its "
      "response; response: the last response; cue: a text that is appended to each "
      "sample in training (the paper's; only endprompt).",
      choices=("turn", "response", "cue"),
    ),
    cue=key(
      "The text ends here. Keep all of it in mind for what follows.",
      "The text that is appended (terminal=cue). It takes its tokens from seq_len.",
    ),
    cue_weight=key(
      0.1,
      "Weight of each of its tokens in the loss; the paper gives no number, its code "
      "has 1. With 0 nothing far away is learned.",
      above=0,
      at_most=1,
    ),
    terminal_at=key(
      "end",
      "Where it moves to (strategy endprompt). end: its last token gets the last "
      "position of L; random: any place up to there.",
      choices=("end", "random"),
    ),
    schedule=key(
      "",
      "Limits L_t that replace L in equal shares of the run, separated by commas. They "
      "rise, and the last one is max_position. Empty: L all the time.",
    ),
  ),
  section(
    "long_short",
    "Long-Short Alignment (arXiv 2506.11769): a regulariser that makes predictions "
    "from a short context similar to those from the long one. It costs a second "
    "forward and backward pass.",
    alpha=key(
      0.0,
      "Weight of the regulariser. 0 turns it off; 0.1 to 0.3 is best in the paper.",
      at_least=0,
    ),
    stop_gradient=key(
      "none",
      "The side that is a fixed target, without a gradient. none: both sides move.",
      choices=("none", "long", "short"),
    ),
    min_context=key(
      0, "Minimum number of tokens of a short context that counts.", at_least=0
    ),
  ),
  section(
    "distill",
    "Self-distillation over positions (RoPE-Perturbed Self-Distillation, arXiv "
    "2604.14339): the model at one set of positions teaches itself at another. It "
    "costs a second forward and backward pass.",
    weight=key(
      0.0, "Weight λ of the KL. 0 turns it off; the paper's is 1.", at_least=0
    ),
    view=key(
      "jump",
      "jump: the teacher reads the positions of the run, the student the same ones "
      "with a jump. strategy: the teacher reads contiguous positions, the student "
      "those of positions.strategy.",
      choices=("jump", "strategy"),
    ),
    split=key(
      "block",
      "Where the jump may be: before any block but the first, or before any token but "
      "the first. Texts need token, or data.text_blocks.",
      choices=("block", "token"),
    ),
    reach=key(
      "sample",
      "The longest jump. sample: as many positions as the sample has tokens (the "
      "paper's); limit: all that are left below positions.max_position.",
      choices=("sample", "limit"),
    ),
    places=key(
      "targets",
      "Places at which teacher and student are compared. targets: those of the loss, "
      "with their weights; all: every token after the jump.",
      choices=("targets", "all"),
    ),
  ),
  section(
    "lora",
    "Low-rank adapters (LoRA, 2106.09685): W x + alpha/rank · B (A x). Only A and B "
    "are trained; they are float32.",
    rank=key(0, "Rank of A and B. 0: train all weights, without adapters.", at_least=0),
    alpha=key(16.0, "The product of A and B is multiplied by alpha/rank.", above=0),
    targets=key(
      "q,k,v,o,gate,up,down",
      "Linear layers that have adapters: some of q, k, v, o, gate, up and down, "
      "separated by commas.",
    ),
    init_from=key(
      "",
      "Adapter in PEFT's format (a folder, or a name on the hub) that A and B start "
      "from; rank, alpha and targets must agree with it. model.init_from is its base. "
      "Empty: A is random, B zero.",
    ),
    base=key(
      "bfloat16",
      "How the frozen weights W are stored. int8, int4 and nf4 (4-bit NormalFloat, "
      "QLoRA, 2305.14314) need the extra lora.",
      choices=("bfloat16", "int8", "int4", "nf4"),
    ),
  ),
  section(
    "optim",
    "How gradients change the weights. Keys that a kind or a schedule does not read "
    "stay at their defaults.",
    kind=key(
      "adamw",
      "adafactor: the second moment of a matrix in one number per row and column, no "
      "first moment (1804.04235; steps are not scaled by the weights, so learning "
      "rates are like AdamW's). lion: signs of the momentum (2302.06675; learning "
      "rates are 3 to 10 times lower). muon: orthogonalised momentum for the matrices "
      "of layers and adapters, with updates as large as AdamW's (2502.16982); AdamW "
      "for embeddings, output matrix, norms and biases.",
      choices=("adamw", "adafactor", "lion", "muon"),
    ),
    learning_rate=key(1e-5, "Highest learning rate.", at_least=0),
    schedule=key(
      "linear",
      "After the warm-up: linear and cosine fall to the end of the run, constant does "
      "not fall, wsd falls linearly in the last decay_fraction of the steps.",
      choices=("linear", "constant", "cosine", "wsd"),
    ),
    warmup_fraction=key(
      0.03,
      "Share of the steps in which the learning rate rises linearly.",
      at_least=0,
      at_most=1,
    ),
    decay_fraction=key(
      0.2,
      "Share of the steps in which the learning rate falls (schedule wsd).",
      at_least=0,
      at_most=1,
    ),
    final_fraction=key(
      0.0,
      "Share of the highest learning rate that linear, cosine and wsd fall to.",
      at_least=0,
      at_most=1,
    ),
    beta1=key(
      0.9,
      "Decay of the first moment (adamw, muon's AdamW); share of the momentum in an "
      "update (lion).",
      at_least=0,
      below=1,
    ),
    beta2=key(
      0.999,
      "Decay of the second moment (adamw, muon's AdamW) or of the momentum (lion, "
      "whose paper has 0.99).",
      at_least=0,
      below=1,
    ),
    momentum=key(0.95, "Decay of muon's momentum.", at_least=0, below=1),
    eps=key(1e-8, "Epsilon of Adam (adamw, muon's AdamW).", above=0),
    weight_decay=key(
      0.0,
      "Decoupled weight decay: a step subtracts learning rate x weight_decay x weight.",
      at_least=0,
    ),
    clip_norm=key(
      1.0, "Largest global norm of the gradient. 0: no clipping.", at_least=0
    ),
    max_nonfinite_steps=key(
      3,
      "Consecutive steps with a loss or gradient that is not finite, after which the "
      "run stops. The updates of such steps are skipped.",
      at_least=1,
    ),
  ),
  section(
    "attention",
    "Kernels of attention.",
    backend=key(
      "auto",
      "auto: cudnn on NVIDIA GPUs from Ampere on (triton for packed rows), splash on "
      "TPUs, otherwise blockwise. xla holds all L x L scores in memory.",
      choices=("auto", "xla", "blockwise", "cudnn", "triton", "splash"),
    ),
  ),
  section(
    "loss",
    "The training loss. Held-out losses are always means over tokens.",
    reduction=key(
      "token",
      "token: mean over all targets. sequence: mean of each sample first, then over "
      "the samples (LongAlign, 2401.18058).",
      choices=("token", "sequence"),
    ),
    chunk=key(
      512, "Tokens per row whose logits are in memory at one time.", at_least=1
    ),
    kind=key(
      "sft",
      "sft: cross entropy of the replies. dpo (2305.18290) and simpo (2405.14734) "
      "learn from pairs: records with chosen and rejected.",
      choices=("sft", "dpo", "simpo"),
    ),
    beta=key(
      None,
      "Factor β of dpo and simpo, which need it. 0.1 is common for dpo; simpo's "
      "paper takes 2 to 10.",
      float,
      above=0,
    ),
    margin=key(
      0.0,
      "Target margin γ/β (kind simpo), in nats per token. The paper takes 0.1 to 0.8.",
      at_least=0,
    ),
    reference=key(
      "strategy",
      "Positions at which the model that the run starts from reads a pair (kind dpo). "
      "strategy: those of the run; contiguous: 0, 1, 2 …, where it has been trained "
      "(LongPO, 2502.13922, compares so).",
      choices=("strategy", "contiguous"),
    ),
  ),
  section(
    "eval",
    "The held-out loss during training.",
    every=key(
      100,
      "Steps between held-out losses. 0: only before the first step and after the "
      "last.",
      at_least=0,
    ),
    at_start=key(
      True, "The held-out loss and the tasks of evals also before the first step."
    ),
  ),
  section(
    "evals",
    "Tasks of evaluate during training; also before the first step and after the last. "
    "A key of this section is the name of an evaluation, its value "
    "dict(task=…, every=STEPS, limit=0, batch_tokens=16384) and options of the task: "
    'c.evals.passkey = dict(task="needle", every=100, lengths="1024,2048").',
  ),
  section(
    "log",
    "Other places for the records of metrics.jsonl. The environment variables of "
    "each package say where they are kept and how one logs in.",
    to=key(
      "",
      "Some of wandb, trackio and mlflow, separated by commas; each needs the extra of "
      "its name. A resumed run stays the same run there.",
    ),
    project=key("skipalign_jax", "Project (of mlflow: experiment) of the run."),
  ),
  section(
    "checkpoint",
    "What the workdir keeps of the run.",
    every=key(
      500, "Steps between checkpoints. 0: only after the last step.", at_least=0
    ),
    keep=key(2, "Number of the latest checkpoints that are kept.", at_least=1),
    keep_best=key(True, "Keep also the checkpoint with the lowest held-out loss."),
  ),
  section(
    "mesh",
    "Number of devices along each axis. One axis can be -1: it takes all devices that "
    "the others leave.",
    data=key(
      1,
      "Each device has a copy of the parameters and its own rows.",
      at_least=1,
      or_value=-1,
    ),
    fsdp=key(
      -1,
      "Parameters, gradients and the optimizer's state are sharded (as in ZeRO-3); "
      "each device has its own rows.",
      at_least=1,
      or_value=-1,
    ),
    tensor=key(
      1, "Attention heads and the MLP's width are split.", at_least=1, or_value=-1
    ),
    context=key(
      1,
      "The tokens of a row are split, for rows that do not fit on one device; "
      "parameters are sharded as along fsdp.",
      at_least=1,
      or_value=-1,
    ),
  ),
)

KEYS = {name: key for part in SECTIONS for name, key in part.full_names().items()}


def default() -> ConfigDict:
  """A config with all keys at their defaults."""
  c = ConfigDict()
  for part in SECTIONS:
    group = c
    if part.name:
      group = c[part.name] = ConfigDict()
    for name, entry in part.keys.items():
      group[name] = entry.field()
  return c


def check(c: ConfigDict) -> None:
  """Checks every key by itself. `training.resolve.check` compares keys, too.

  Raises:
    UserError: keys that `SECTIONS` does not have, or lacks; values that it does not
      allow. One line for each.
  """
  given = flatten(c)
  extra = [name for name in given if name not in KEYS and not _is_open(name)]
  missing = [name for name in KEYS if name not in given]
  _refuse(
    [unknown(name) for name in extra]
    + [f"config has no {name}; start from config.default()" for name in missing]
    + _problems({name: given[name] for name in KEYS if name in given})
  )


def check_section(name: str, values: Mapping[str, Any]) -> None:
  """Checks values of some keys of a section.

  Args:
    name: of the section.
    values: key of the section → value.

  Raises:
    UserError: values that `SECTIONS` does not allow.
  """
  _refuse(_problems({f"{name}.{key}": value for key, value in values.items()}))


def _problems(values: Mapping[str, Any]) -> list[str]:
  return [
    KEYS[name].problem(name, value)
    for name, value in values.items()
    if not KEYS[name].accepts(value)
  ]


def _refuse(problems: list[str]) -> None:
  if problems:
    raise errors.UserError("\n".join(problems))


def _is_open(name: str) -> bool:
  return any(not part.keys and name.startswith(f"{part.name}.") for part in SECTIONS)


def unknown(name: str) -> str:
  """Says that the config has no key `name`, and which one is meant."""
  if _is_open(name):
    return (
      f"the config has no {name!r}: the command line changes only those options of "
      f"{name.partition('.')[0]} that the config file sets; set it there"
    )
  close = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.7)
  closest = f"did you mean {close[0]}?" if close else ""
  hint = config_keys.meant(name, tuple(KEYS)) or closest
  shown = f"; {hint}" if hint else ""
  return f"config has no key {name!r}{shown} (all keys: skipalign_jax/config.py)"


def flatten(c: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """ "section.key" → value, in order."""
  found: dict[str, Any] = {}
  for name, value in c.items():
    if isinstance(value, ConfigDict):
      found |= flatten(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def tiny(c: ConfigDict) -> ConfigDict:
  """The same recipe on a byte-level model that trains in seconds on any machine."""
  c.model.init_from = ""
  m = c.model
  m.num_layers, m.embed_dim, m.ffn_dim = 2, 64, 128
  m.num_heads, m.num_kv_heads, m.head_dim = 4, 2, 16
  m.norm_eps, m.tie_embeddings = 1e-5, True
  m.attention_bias = m.mlp_bias = False
  m.window, m.compute_dtype = 256, "float32"
  m.family, m.nope_layers = "llama", ()
  c.rope.theta = 10_000.0
  c.data.tokenizer, c.data.template, c.data.template_kwargs = "bytes", "model", ""
  c.data.train, c.data.eval = _small(c), "holdout"
  short = min(c.data.seq_len, 512)
  c.data.text_window = c.data.text_window * short // c.data.seq_len
  c.long_short.min_context = c.long_short.min_context * short // c.data.seq_len
  c.data.seq_len = short
  c.batch_size, c.grad_accum, c.epochs, c.steps = 8, 1, None, 8
  c.optim.learning_rate, c.lora.init_from = 3e-3, ""
  c.eval.every, c.checkpoint.every = 4, 4
  return c


def _small(c: ConfigDict) -> str:
  """Built-in sources with 64 records each and their weights, else one of their kind."""
  source = c.data.train
  texts = source.split(",") if isinstance(source, str) else source
  if all(text.strip().startswith("builtin:") for text in texts):
    return re.sub(r"(builtin:\w+)(:\d+)?", r"\1:64", ",".join(texts))
  kind = "pairs" if has_pairs(c) else "text" if c.data.text_window else "recall"
  return f"builtin:{kind}:64"


def row_length(data: ConfigDict) -> int:
  """Tokens per row of a training batch, before the step crops it."""
  return data.text_window or data.seq_len


def held_out(data: ConfigDict, samples: int) -> int:
  """Training samples that data.eval takes out of `samples` different ones."""
  spec = data.eval if isinstance(data.eval, str) else ""
  if spec == "holdout":
    return min(64, samples // 10)
  count = spec.removeprefix("holdout:")
  if count == spec:
    return 0
  if not count.isdecimal() or int(count) < 1:
    raise errors.UserError(
      f"data.eval={spec!r} is not valid; give holdout:N with N at least 1, or holdout"
    )
  return int(count)


def buckets(data: ConfigDict) -> tuple[int, ...]:
  """Lengths that the rows of a batch can have, ascending; each needs its own program.

  seq_len and, for sorted batches, a half, a quarter and an eighth of it, as long as
  they are multiples of the tile of the attention kernels (128).
  """
  halvings = 3 if data.batching == "sorted" else 0
  lengths = [data.seq_len]
  while len(lengths) <= halvings and lengths[0] % 256 == 0:
    lengths.insert(0, lengths[0] // 2)
  return tuple(lengths)


def max_packed(data: ConfigDict) -> int:
  """Largest number of samples that packing puts into a row."""
  return max(1, data.seq_len // 32) if data.packing else 1


def has_pairs(c: ConfigDict) -> bool:
  """Whether a record is a preference pair: two segments of a row."""
  return c.loss.kind != "sft"


def max_samples(data: ConfigDict) -> int:
  """Largest number of segments in a row; attention kernels need a bound."""
  return max_packed(data) if data.packing_mask else 1


VARIANTS = {"": lambda c: c, "tiny": tiny}


def apply_variant(c: ConfigDict, variant: str) -> ConfigDict:
  """Applies the part after the colon of `--config=FILE:variant`.

  Raises:
    UserError: there is no such variant, or the config is wrong without it.
  """
  if variant not in VARIANTS:
    known = ", ".join(name for name in VARIANTS if name)
    raise errors.UserError(f"unknown config variant {variant!r}; known: {known}")
  check(c)
  return VARIANTS[variant](c)
