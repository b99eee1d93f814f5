"""Study A: does SkipAlign do on a real model what its paper says? See README.md here.

SmolLM2-135M-Instruct (window 8192), fine-tuned on 98,000 tokens of short dialogues, is
asked for keys in texts of up to 16,384 tokens. All rows see the same data, tokens and
seed; all but PackedSFT (whose rows of 16,384 make a quarter of the updates) the same
steps. Beside them are rows of other seeds, twice the steps, another learning rate or L.
Each row is tested at the NTK target that did best on other keys in another book, three
of them at a second target.

Not in the repository, to be put into .cache/study/: chats.jsonl.gz (dialogues of
several turns), validation.txt.gz, test.txt.gz and other.txt.gz (a book each).

What was found is in studies/smollm2/results; its complete rows do not run again.

Commands:
  make study-a                                       # all rows, one after the other
  make study-a ROWS=normal-sft,skipalign             # some of them
  python -m skipalign_jax.sweep --config=studies/smollm2/study_a.py:tiny --run
Hardware: two CPU cores, 35 to 90 minutes a row and core (PackedSFT-16k: more); about
five times that without AVX-512.
"""

import dataclasses

from skipalign_jax.sweep import runs

CONFIG = "configs/smollm2_ntk.py"
WEIGHTS = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = ".cache/study"
CHATS = f"{DATA}/chats.jsonl.gz"

SHORT = {
  "data.train": f"{CHATS},builtin:recall:1100",
  "data.eval": "holdout:32",
  "batch_size": 4,
  "grad_accum": 4,
  "steps": 24,
  "optim.learning_rate": 2e-4,
  "eval.every": 0,
  "checkpoint.keep_best": False,
  "checkpoint.keep": 1,
}
CONTIGUOUS = SHORT | {"positions.strategy": "contiguous"}
PACKED = CONTIGUOUS | {
  "data.seq_len": 16_384,
  "batch_size": 1,
  "grad_accum": 1,
  "steps": 6,
  "checkpoint.every": 3,
}
NO_RECALL = {"data.train": CHATS}

PAIRS = (  # the claims: the first is said to find more
  ("SkipAlign", "Normal-SFT"),
  ("SkipAlign", "PackedSFT-16k"),
  ("SkipAlign", "PackedSFT-16k, masked"),
  ("SkipAlign", "base, NTK"),
  ("SkipAlign", "Skip-Inner"),
  ("SkipAlign, Long-Short", "SkipAlign"),
  ("SkipAlign, no recall", "Normal-SFT, no recall"),
  ("SkipAlign, seed 1", "Normal-SFT, seed 1"),
  ("SkipAlign, seed 1", "PackedSFT-16k, seed 1"),
  # No claims; what tells why.
  ("SkipAlign", "Normal-SFT, at 65,536"),
  ("Normal-SFT, at 65,536", "Normal-SFT"),
  ("SkipAlign, 48 steps", "Normal-SFT, 48 steps"),
  ("SkipAlign, 48 steps", "Normal-SFT, 48 steps, at 32,768"),
  ("Normal-SFT, 48 steps, at 32,768", "Normal-SFT, 48 steps"),
  ("Normal-SFT, 48 steps, at 32,768", "Normal-SFT"),
  ("SkipAlign, 48 steps, seed 1", "Normal-SFT, 48 steps, seed 1"),
  ("SkipAlign, rate 5e-4", "Normal-SFT, rate 5e-4"),
  ("SkipAlign, rate 5e-4", "Normal-SFT, rate 5e-4, at 32,768"),
  ("Normal-SFT, rate 5e-4, at 32,768", "Normal-SFT, rate 5e-4"),
  ("SkipAlign, L 16,384", "SkipAlign"),
  ("SkipAlign, L 16,384", "Normal-SFT"),
  ("SkipAlign, uniform gaps", "Normal-SFT"),
  ("SkipAlign, 48 steps", "SkipAlign"),
  ("SkipAlign, 48 steps, seed 1", "SkipAlign, seed 1"),
  ("Normal-SFT, 48 steps", "Normal-SFT"),
  ("Normal-SFT, 48 steps, seed 1", "Normal-SFT, seed 1"),
  ("SkipAlign, no recall", "base, NTK"),
  ("Normal-SFT, no recall", "base, NTK"),
  ("PackedSFT-16k, masked", "PackedSFT-16k"),
  ("SkipAlign, uniform gaps", "SkipAlign"),
  ("PoSE", "SkipAlign"),
)


def get_sweep(variant: str = "") -> runs.Sweep:
  row = lambda *changes: runs.Run(CONFIG, {k: v for c in changes for k, v in c.items()})
  table = {
    "base, NTK": runs.Run(model=WEIGHTS),
    "Normal-SFT": row(CONTIGUOUS),
    "SkipAlign": row(SHORT),
    "PackedSFT-16k": row(PACKED, {"data.packing_mask": False}),
    "base": runs.Run(model=WEIGHTS, evaluate={"rope.kind": "model"}),
    "Skip-All": row(SHORT, {"positions.strategy": "skip_all"}),
    "Skip-Inner": row(SHORT, {"positions.strategy": "skip_inner"}),
    "SkipAlign, uniform gaps": row(SHORT, {"positions.gaps": "uniform"}),
    "PoSE": row(SHORT, {"positions.strategy": "pose"}),
    "SkipAlign, Long-Short": row(SHORT, {"long_short.alpha": 0.1}),
    "PackedSFT-16k, masked": row(PACKED),
    "Normal-SFT, no recall": row(CONTIGUOUS, NO_RECALL),
    "SkipAlign, no recall": row(SHORT, NO_RECALL),
    "Normal-SFT, seed 1": row(CONTIGUOUS, {"seed": 1}),
    "SkipAlign, seed 1": row(SHORT, {"seed": 1}),
    "PackedSFT-16k, seed 1": row(PACKED, {"data.packing_mask": False, "seed": 1}),
    "Normal-SFT, 48 steps": row(CONTIGUOUS, {"steps": 48}),
    "SkipAlign, 48 steps": row(SHORT, {"steps": 48}),
    # Not at the targets that they chose: ten keys left little between the two best.
    "Normal-SFT, at 65,536": runs.Run(
      model="studies/smollm2/results/rows/normal-sft",
      evaluate={"rope.kind": "ntk", "rope.target_length": 65_536},
    ),
    "Normal-SFT, 48 steps, at 32,768": runs.Run(
      model="studies/smollm2/results/rows/normal-sft_48_steps",
      evaluate={"rope.kind": "ntk", "rope.target_length": 32_768},
    ),
    "Normal-SFT, 48 steps, seed 1": row(CONTIGUOUS, {"steps": 48, "seed": 1}),
    "SkipAlign, 48 steps, seed 1": row(SHORT, {"steps": 48, "seed": 1}),
    "Normal-SFT, rate 5e-4": row(CONTIGUOUS, {"optim.learning_rate": 5e-4}),
    "Normal-SFT, rate 5e-4, at 32,768": runs.Run(  # it chose 65,536
      model="studies/smollm2/results/rows/normal-sft_rate_5e-4",
      evaluate={"rope.kind": "ntk", "rope.target_length": 32_768},
    ),
    "SkipAlign, rate 5e-4": row(SHORT, {"optim.learning_rate": 5e-4}),
    "SkipAlign, L 16,384": row(  # rope as in the other rows
      SHORT, {"positions.max_position": 16_384, "rope.target_length": 32_768}
    ),
  }
  book = f"{DATA}/test.txt.gz"
  tests = {
    "keys": dict(
      task="keys", haystack=book, lengths="1024,2048,4096,8192,12288,16384", samples=2
    ),
    # Beyond the window once more (few keys decide little), and whose keys are taken.
    "keys_far": dict(
      task="keys", haystack=book, lengths="12288,16384", samples=4, seed=1, rivals=True
    ),
    "keys_near": dict(
      task="keys", haystack=book, lengths="1024,4096", samples=4, seed=1, rivals=True
    ),
    # As long as the longest positions of training: not a claim, a look.
    "keys_long": dict(
      task="keys", haystack=book, lengths="24576,32768", samples=1, seed=2, rivals=True
    ),
    "keys_longest": dict(  # the same look at two more texts
      task="keys", haystack=book, lengths="32768", samples=2, seed=3, rivals=True
    ),
    # The texts above are the same pages with other keys; these are of a third book.
    "keys_other_book": dict(
      task="keys",
      haystack=f"{DATA}/other.txt.gz",
      lengths="12288,16384",
      samples=4,
      own_pages=True,
      seed=4,
      rivals=True,
    ),
    # More keys to choose a target by than the ten of `choose`: what would these say?
    "keys_validation": dict(
      task="keys",
      haystack=f"{DATA}/validation.txt.gz",
      lengths="12288,16384",
      samples=2,
      own_pages=True,
      seed=1001,
    ),
    "needle": dict(task="needle", haystack=book, lengths="4096,12288", depths=3),
    # Few of these decide nothing; asked where the first ones differed: a look, too.
    "needle_far": dict(
      task="needle", haystack=book, lengths="12288,16384", depths=5, samples=2, seed=1
    ),
    "perplexity": dict(task="perplexity", files=book, length=16_384, documents=1),
    "misalignment": dict(task="misalignment", source=book, lengths="2048", samples=16),
    "ruler": dict(
      task="ruler", tasks="niah_single_1,niah_multikey_2,vt", lengths="4096", samples=2
    ),
  }
  choose = dict(
    task="keys", haystack=f"{DATA}/validation.txt.gz", lengths="12288,16384", seed=1000
  )
  targets = (16_384, 32_768, 65_536)
  if variant == "tiny":
    contiguous = {"positions.strategy": "contiguous"}
    table = {"Normal-SFT": runs.Run(CONFIG, contiguous), "SkipAlign": runs.Run(CONFIG)}
    choose = dict(task="keys", lengths="900", depths=2, seed=1000)
    targets = (32_768, 65_536)
  sweep = runs.sweep("Study A", table, tests, variant, "study_a")
  return dataclasses.replace(
    sweep,
    targets=targets,
    choose=choose,
    window=8192,
    claimed=(12_288, 16_384),
    pairs=PAIRS,
    out=sweep.out if variant else "studies/smollm2/results",
  )
