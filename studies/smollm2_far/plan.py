"""Everything that the study fixes beforehand: README.md here says it in words.

An arm has rows (a method each), seeds, and two sets of texts: `far`, about which its
claim is, and `near`, next to which a lead counts. The gate decides three numbers of the
second arm (`Decided`), on validation texts, by rules that are fixed here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

CONFIG = "configs/smollm2_ntk.py"
WEIGHTS = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = ".cache/study"  # as study A: see studies/smollm2/study_a.py
CHATS = f"{DATA}/chats.jsonl.gz"
DIALOGUES = f"{DATA}/far_dialogues.jsonl"  # made of CHATS by `dialogues`
TEST, OTHER, VALIDATION = (
  f"{DATA}/{name}.txt.gz" for name in ("test", "other", "validation")
)
RECALL = 1100  # built-in dialogues
MAX_TOKENS = 1024  # of a dialogue
STEPS, RATE = 48, 2e-4  # of 4096 tokens

SEEDS = (0, 1, 2, 3, 4, 5)
FEW = SEEDS[:3]  # of exploratory rows
PILOT = 100
KEYS = 5  # of owners in each text
WINDOW = 8192
L_BEYOND = 65_536
TARGETS = (32_768, 65_536)

MARGIN = 0.3  # nats; a difference within is equivalent
BASE_CHOICES = 0.8  # of the base's facts inside the window, by choice
ROOM = (0.5, 0.7)  # least gain far, nats; and most, as a share of the gain near
LENGTHS = {"first": 20_480, "shorter": 16_384, "longer": 24_576}
TEXT_COUNTS = (4, 6, 8)  # far texts of arm II: the first that suffices
SEED_SD = 0.2  # nats, assumed where one pilot seed cannot tell
UNIT_MINUTES = 45

NEAR, FAR = "near", "far"


@dataclasses.dataclass(frozen=True)
class Texts:
  """Texts of one length: options of `evaluate facts`."""

  length: int
  samples: int
  seed: int
  books: str

  def options(self) -> dict[str, Any]:
    """As flags."""
    return {
      "haystack": self.books,
      "lengths": self.length,
      "samples": self.samples,
      "keys": KEYS,
      "seed": self.seed,
    }


@dataclasses.dataclass(frozen=True)
class Row:
  """A method.

  Attributes:
    changes: keys of the config → values, besides those of its arm.
    seeds: that are trained; () for the model as it is.
    planned: whether a primary contrast has it.
  """

  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seeds: tuple[int, ...] = FEW
  planned: bool = False


@dataclasses.dataclass(frozen=True)
class Arm:
  """Rows that are trained and asked alike.

  Attributes:
    rope: rope.kind, rope.target_length where it has one: in training and asking.
    max_position: L.
    rows: name → row.
    texts: NEAR and FAR.
    minutes: of a trained unit on two cores with AMX, where none is measured yet.
  """

  rope: Mapping[str, Any]
  max_position: int
  rows: Mapping[str, Row]
  texts: Mapping[str, Texts]
  minutes: float


@dataclasses.dataclass(frozen=True)
class Decided:
  """What the gate decides about the second arm.

  Attributes:
    targets: of NTK; the first is that of the primary contrast.
    far_length: tokens.
    far_texts: how many.
  """

  targets: tuple[int, ...] = TARGETS[:1]
  far_length: int = LENGTHS["first"]
  far_texts: int = TEXT_COUNTS[0]


COMMON = {
  "data.train": f"{DIALOGUES},builtin:recall:{RECALL}",
  "data.eval": "holdout:512",
  "data.seq_len": MAX_TOKENS,
  "data.template": "tulu",
  "batch_size": 4,
  "grad_accum": 4,
  "steps": STEPS,
  "optim.learning_rate": RATE,
  "eval.every": 0,
  "eval.at_start": False,  # the same for all rows of an arm
  "checkpoint.every": 12,
  "checkpoint.keep": 1,
  "checkpoint.keep_best": False,
}
BASE, NORMAL, OUTER, INNER = "base", "Normal-SFT", "Skip-Outer", "Skip-Inner"
LSA = "Skip-Outer, Long-Short"
LSA_TIME = "Skip-Outer, Long-Short, equal time"
CONTIGUOUS = {"positions.strategy": "contiguous"}


def packed(tokens: int, mask: bool) -> dict[str, Any]:
  """Rows of so many tokens, as many tokens in all."""
  return CONTIGUOUS | {
    "data.seq_len": tokens,
    "data.packing_mask": mask,
    "batch_size": 1,
    "grad_accum": 1,
    "steps": STEPS * 4096 // tokens,
    "checkpoint.every": 6,
  }


_PLANNED = {
  BASE: Row(seeds=(), planned=True),
  NORMAL: Row(CONTIGUOUS, SEEDS, True),
  OUTER: Row({"positions.strategy": "skip_outer"}, SEEDS, True),
}
INSIDE = Arm(
  rope={"rope.kind": "model"},
  max_position=WINDOW,
  rows=_PLANNED
  | {
    INNER: Row({"positions.strategy": "skip_inner"}, SEEDS, True),
    LSA: Row({"long_short.alpha": 0.1}),
    LSA_TIME: Row({"long_short.alpha": 0.1, "steps": STEPS // 2}),
    "PackedSFT-8k": Row(packed(8192, False)),
    "PackedSFT-8k, masked": Row(packed(8192, True)),
    "Skip-All": Row({"positions.strategy": "skip_all"}),
    "Skip-Outer, uniform gaps": Row({"positions.gaps": "uniform"}),
    "self-distillation": Row({"distill.weight": 1.0, "distill.view": "strategy"}),
    "EndPrompt": Row({"positions.strategy": "endprompt"}),
  },
  texts={
    FAR: Texts(4096, 16, 11, f"{TEST},{OTHER}"),
    NEAR: Texts(1024, 16, 12, f"{OTHER},{TEST}"),
  },
  minutes=16,
)
FEW_UPDATES = "Normal-SFT, 12 updates"


def beyond(decided: Decided, target: int) -> Arm:
  """The second arm at one of its targets."""
  return Arm(
    rope={"rope.kind": "ntk", "rope.target_length": target},
    max_position=L_BEYOND,
    rows=_PLANNED
    | {
      "PackedSFT-16k": Row(packed(16_384, False)),
      FEW_UPDATES: Row(CONTIGUOUS | {"steps": 12}),
    },
    texts={
      FAR: Texts(decided.far_length, decided.far_texts, 21, f"{TEST},{OTHER}"),
      NEAR: Texts(4096, 4, 22, f"{OTHER},{TEST}"),
    },
    minutes=30,
  )


def gate(target: int, far_length: int = LENGTHS["first"]) -> Arm:
  """Pilots on validation texts at a target; 40 facts per length."""
  pilot = lambda changes: Row(changes, (PILOT,), True)
  return Arm(
    rope={"rope.kind": "ntk", "rope.target_length": target},
    max_position=L_BEYOND,
    rows={
      NORMAL: pilot(CONTIGUOUS),
      OUTER: pilot({"positions.strategy": "skip_outer"}),
    },
    texts={
      FAR: Texts(far_length, 5, 31, VALIDATION),
      NEAR: Texts(4096, 5, 32, VALIDATION),
    },
    minutes=20,
  )


# The base inside its window, without NTK: is the instrument easy enough?
BASE_GATE = Arm(
  rope={"rope.kind": "model"},
  max_position=WINDOW,
  rows={BASE: Row(seeds=(), planned=True)},
  texts={FAR: Texts(4096, 5, 33, VALIDATION), NEAR: Texts(1024, 5, 34, VALIDATION)},
  minutes=2,
)


@dataclasses.dataclass(frozen=True)
class Contrast:
  """one − other by a measure of the texts, in an arm.

  Attributes:
    claim: what it is about.
    primary: whether Holm's correction counts it.
  """

  claim: str
  arm: str
  measure: str
  one: str
  other: str
  primary: bool = False


ARM_1, ARM_2 = "inside", "beyond"
CONTRASTS = (
  Contrast("claim 2", ARM_1, "owner_margin", OUTER, INNER, True),
  Contrast("claim 1", ARM_2, "gain", OUTER, NORMAL, True),
  Contrast("claim 3, equal tokens", ARM_1, "owner_margin", LSA, OUTER),
  Contrast("claim 3, equal time", ARM_1, "owner_margin", LSA_TIME, OUTER),
  Contrast("claim 2 by facts", ARM_1, "gain", OUTER, INNER),
  Contrast("claim 1 inside the window", ARM_1, "owner_margin", OUTER, NORMAL),
  Contrast("claim 1 inside the window, facts", ARM_1, "gain", OUTER, NORMAL),
  Contrast("claim 1 by owners", ARM_2, "owner_margin", OUTER, NORMAL),
  *(
    Contrast("packed rows", ARM_1, measure, OUTER, row)
    for row in ("PackedSFT-8k", "PackedSFT-8k, masked")
    for measure in ("owner_margin", "gain")
  ),
  *(
    Contrast("other methods", ARM_1, "owner_margin", row, OUTER)
    for row in (
      "Skip-All",
      "Skip-Outer, uniform gaps",
      "self-distillation",
      "EndPrompt",
    )
  ),
  Contrast("packed rows", ARM_2, "gain", "PackedSFT-16k", NORMAL),
  Contrast("few updates", ARM_2, "gain", "PackedSFT-16k", FEW_UPDATES),
)
