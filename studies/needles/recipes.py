"""The study's settings, its rows, and the train config of each.

A row of the tables is a method of SFT; all other settings (data, steps, tokens per
batch, learning rate) are equal.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from skipalign_jax import config

BASE, BASE_NTK = "base", "base + NTK"
NORMAL, OUTER = "Normal-SFT", "Skip-Outer"


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings that change the numbers.

  Attributes:
    window: W, tokens that the base is trained on.
    theta: of the base's rope; the longest wavelength is about 17 W (Llama-2: 13 W).
    candidates: seeds; each has its own language, base, SFT data, draws and needles. The
      first ones whose base retrieves inside its window are used.
    retrieves: share of validation needles at W, in texts, that a base must find.
    seeds: number of seeds used.
    pilots: number of seeds, the first ones, that try every NTK target to choose one.
    sweep_seeds: number of seeds, the first ones, in the sweeps.
    targets: NTK targets s, in windows.
    tested: lengths, in windows.
    further: lengths beyond L, in windows, of test needles only.
    curriculum: (tokens per row, steps, whether answers repeat the key) of each stage of
      the pretraining.
    pretrain_rate, sft_rate: learning rates.
    pretrain_tokens: per step.
    dialogues: per step of SFT.
    steps: of SFT.
    embed_dim, ffn_dim: widths of the model.
    validation, test, retained: haystacks per length and seed, of three questions each:
      for the choice of targets, for the tables, and in the other format.
  """

  window: int = 64
  theta: float = 250.0
  candidates: tuple[int, ...] = tuple(range(10))
  retrieves: float = 0.9
  seeds: int = 5
  pilots: int = 2
  sweep_seeds: int = 3
  targets: tuple[int, ...] = (8, 16, 32)
  tested: tuple[int, ...] = (1, 2, 4, 8)
  further: tuple[int, ...] = (16,)
  curriculum: tuple[tuple[int, int, bool], ...] = (
    (32, 400, False),
    (64, 900, False),
    (64, 150, True),
    (64, 450, True),
  )
  pretrain_rate: float = 4e-3
  sft_rate: float = 2e-3
  pretrain_tokens: int = 2048
  dialogues: int = 16
  steps: int = 250
  embed_dim: int = 64
  ffn_dim: int = 128
  validation: int = 64
  test: int = 384
  retained: int = 64


# Runs all code; learns nothing.
MICRO = Settings(
  window=64,
  candidates=(0, 1),
  retrieves=0.0,
  seeds=2,
  pilots=1,
  sweep_seeds=1,
  targets=(8,),
  tested=(1, 2),
  further=(4,),
  curriculum=((32, 2, False), (64, 2, True)),
  dialogues=8,
  steps=2,
  embed_dim=32,
  ffn_dim=32,
  validation=2,
  test=3,
  retained=2,
)


def more_seeds(settings: Settings) -> Settings:
  """Three seeds more: the first after those that the study tried and that retrieve."""
  return dataclasses.replace(settings, candidates=tuple(range(7, 20)), seeds=3)


@dataclasses.dataclass(frozen=True)
class Row:
  """A method of SFT.

  Attributes:
    changes: keys of the config → values.
    reach: L in windows, for methods that skip positions.
    packed: dialogues per packed row; batches have as many tokens as without packing.
    steps: of SFT, as a multiple of the settings'.
    rate: learning rate, as a multiple of the settings'.
    per_question: facts per question, in dialogues and needles.
  """

  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reach: int = 8
  packed: int = 1
  steps: float = 1.0
  rate: float = 1.0
  per_question: int = 1


def at(strategy: str, **others: Any) -> dict[str, Any]:
  return {"positions.strategy": strategy} | others


NO_MASK = {"data.packing_mask": False}
ROWS = {
  NORMAL: Row(at("contiguous")),
  OUTER: Row(at("skip_outer")),
  "Skip-Inner": Row(at("skip_inner")),
  "PackedSFT": Row(at("contiguous", **NO_MASK), packed=8),
  "Skip-Outer + LSA": Row(at("skip_outer", **{"long_short.alpha": 0.1})),
  "PackedSFT, masked": Row(at("contiguous"), packed=8),
  "Skip-All": Row(at("skip_all")),
  "PoSE": Row(at("pose")),
  "Skip-Outer, uniform gaps": Row(at("skip_outer", **{"positions.gaps": "uniform"})),
}

# The claims are also tested for rows that differ from those above in one thing: replies
# of five words instead of three, twice the training, or that at a tenth of the rate of
# pretraining (planned; see README.md here).
FOLLOW_UPS = {
  "two facts": {"per_question": 2},
  "2 x steps": {"steps": 2.0},
  "2 x steps, rate / 5": {"steps": 2.0, "rate": 0.2},
}
FOLLOWED = (NORMAL, OUTER, "Skip-Inner", "PackedSFT", "Skip-Outer + LSA")
FOLLOW_UP_ROWS = {
  f"{name}, {change}": dataclasses.replace(ROWS[name], **fields)
  for change, fields in FOLLOW_UPS.items()
  for name in FOLLOWED
}

# One setting changed at a time; the rows above have L = 8 W, p = 0.5.
SWEEPS = {
  "L": {
    f"Skip-Outer, L = {reach} W": Row(at("skip_outer"), reach)
    for reach in (2, 4, 16, 32)
  },
  "p": {
    f"Skip-Outer, p = {p}": Row(at("skip_outer", **{"positions.skip_prob": p}))
    for p in (0.2, 0.8, 1.0)
  },
  "learning rate": {
    f"{name}, rate {factor}": Row(at(strategy), rate=rate)
    for factor, rate in (("/ 3", 1 / 3), ("x 2", 2.0))
    for name, strategy in ((NORMAL, "contiguous"), (OUTER, "skip_outer"))
  },
  "alpha": {
    "Normal-SFT + LSA": Row(at("contiguous", **{"long_short.alpha": 0.1})),
    **{
      f"Skip-Outer, alpha = {a}": Row(at("skip_outer", **{"long_short.alpha": a}))
      for a in (0.3, 1.0)
    },
  },
}
ALL_ROWS = {
  name: row
  for rows in (ROWS, FOLLOW_UP_ROWS, *SWEEPS.values())
  for name, row in rows.items()
}
# Rows whose accuracies are comparable: one fact per question.
OF_ONE_TASK = [name for name, row in ALL_ROWS.items() if row.per_question == 1]


def chats_of(per_question: int) -> str:
  """Name of the file of a seed's dialogues with this many facts per question."""
  return f"chats{per_question}.jsonl"


def _shared(settings: Settings, seed: int, cache: pathlib.Path) -> Any:
  c = config.default()
  c.seed = seed
  c.model.compute_dtype, c.model.remat = "float32", "none"
  c.optim.beta2 = 0.99
  c.data.cache_dir = str(cache)
  c.eval.every = c.checkpoint.every = 0
  c.checkpoint.keep, c.checkpoint.keep_best = 1, False
  return c


def pretraining(
  settings: Settings, seed: int, stage: int, before: str, folder: pathlib.Path
) -> Any:
  """The config of one stage of the curriculum.

  Args:
    settings: of the study.
    seed: of the base.
    stage: index into settings.curriculum.
    before: workdir of the stage before; "" in the first stage.
    folder: with tokenizer/, cache/ and the seed's texts.
  """
  length, steps, _ = settings.curriculum[stage]
  c = _shared(settings, seed, folder / "cache")
  c.data.train, c.data.eval = str(folder / f"seed{seed}" / f"text{stage}.jsonl"), ""
  c.data.seq_len, c.data.tokenizer = length, str(folder / "tokenizer")
  c.batch_size, c.steps = settings.pretrain_tokens // length, steps
  c.optim.learning_rate = settings.pretrain_rate
  c.positions.strategy = "contiguous"
  c.model.init_from = before
  if not before:
    m = c.model
    m.num_layers, m.embed_dim, m.ffn_dim = 2, settings.embed_dim, settings.ffn_dim
    m.num_heads = m.num_kv_heads = 2
    m.head_dim = settings.embed_dim // 2
    m.norm_eps, m.tie_embeddings = 1e-5, False
    m.attention_bias = m.mlp_bias = False
    m.window, c.rope.theta = settings.window, settings.theta
  return c


def sft(
  settings: Settings, seed: int, row: Row, target: int, base: str, folder: pathlib.Path
) -> Any:
  """The config of a row's SFT.

  Args:
    settings: of the study.
    seed: of the base and the dialogues.
    row: the method.
    target: NTK target s, in windows.
    base: workdir of the pretrained model.
    folder: with cache/ and the seed's chats.
  """
  c = _shared(settings, seed, folder / "cache")
  # The seed of the random positions is part of the compiled program, so it is the same
  # for all. Draws still differ by seed: a hash of the dialogue is their key.
  c.seed = 0
  c.model.init_from = base
  c.data.train, c.data.eval = (
    str(folder / f"seed{seed}" / chats_of(row.per_question)),
    "holdout:64",
  )
  c.data.seq_len = settings.window * row.packed
  c.data.packing = row.packed > 1
  c.batch_size = settings.dialogues // row.packed
  c.steps = round(settings.steps * row.steps)
  c.optim.learning_rate = settings.sft_rate * row.rate
  c.positions.max_position = row.reach * settings.window
  c.rope.kind, c.rope.target_length = "ntk", target * settings.window
  for key, value in row.changes.items():
    group, name = key.split(".")
    c[group][name] = value
  return c
