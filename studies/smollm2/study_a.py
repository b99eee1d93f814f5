"""Study A: what SkipAlign does on a real model. See README.md here.

SmolLM2-135M-Instruct (window 8192) is fine-tuned on 98,000 tokens of short dialogues
and evaluated on keys in texts of up to 16,384 tokens. All runs have the same data,
tokens and seed, and the same number of steps; PackedSFT has a quarter of the updates,
because its rows have 16,384 tokens. Further runs have another seed, twice the steps,
another learning rate or another L. Each run is tested at the NTK target that was best
on other keys in another book; three runs are also tested at a second target.

Files that are not in the repository, to be put into .cache/study/: chats.jsonl.gz
(dialogues of several turns), and validation.txt.gz, test.txt.gz and other.txt.gz (one
book each).

The results are in studies/smollm2/results; finished runs are not repeated.

Commands:
  make study-a                                       # all runs, one after the other
  make study-a ROWS=normal-sft,skipalign             # some of them
  python -m skipalign_jax.sweep --config=studies/smollm2/study_a.py:tiny --run
Hardware: two CPU cores, 35 to 90 minutes per run and core (PackedSFT-16k: more); about
five times that without AVX-512.
"""

import dataclasses
from typing import Any

from skipalign_jax.sweep import runs

CONFIG = "configs/smollm2_ntk.py"
WEIGHTS = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = ".cache/study"
CHATS = f"{DATA}/chats.jsonl.gz"
BOOK = f"{DATA}/test.txt.gz"
OUT = "studies/smollm2/results"

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

PAIRS = (  # the claims: the first is claimed to find more
  ("SkipAlign", "Normal-SFT"),
  ("SkipAlign", "PackedSFT-16k"),
  ("SkipAlign", "PackedSFT-16k, masked"),
  ("SkipAlign", "base, NTK"),
  ("SkipAlign", "Skip-Inner"),
  ("SkipAlign, Long-Short", "SkipAlign"),
  ("SkipAlign, no recall", "Normal-SFT, no recall"),
  ("SkipAlign, seed 1", "Normal-SFT, seed 1"),
  ("SkipAlign, seed 1", "PackedSFT-16k, seed 1"),
  # Exploratory; not among the claims.
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


def trained(*changes: dict[str, Any]) -> runs.Run:
  """A run of the config with all these changes; later ones win."""
  return runs.Run(CONFIG, {k: v for change in changes for k, v in change.items()})


def at_target(workdir: str, target: int) -> runs.Run:
  """The model of an earlier run at an NTK target that its choice did not give."""
  ntk = {"rope.kind": "ntk", "rope.target_length": target}
  return runs.Run(model=f"{OUT}/rows/{workdir}", evaluate=ntk)


MAIN = {
  "base, NTK": runs.Run(model=WEIGHTS),
  "Normal-SFT": trained(CONTIGUOUS),
  "SkipAlign": trained(SHORT),
  "PackedSFT-16k": trained(PACKED, {"data.packing_mask": False}),
  "base": runs.Run(model=WEIGHTS, evaluate={"rope.kind": "model"}),
}
METHODS = {
  "Skip-All": trained(SHORT, {"positions.strategy": "skip_all"}),
  "Skip-Inner": trained(SHORT, {"positions.strategy": "skip_inner"}),
  "SkipAlign, uniform gaps": trained(SHORT, {"positions.gaps": "uniform"}),
  "PoSE": trained(SHORT, {"positions.strategy": "pose"}),
  "SkipAlign, Long-Short": trained(SHORT, {"long_short.alpha": 0.1}),
  "PackedSFT-16k, masked": trained(PACKED),
}
DATA_AND_SEEDS = {
  "Normal-SFT, no recall": trained(CONTIGUOUS, NO_RECALL),
  "SkipAlign, no recall": trained(SHORT, NO_RECALL),
  "Normal-SFT, seed 1": trained(CONTIGUOUS, {"seed": 1}),
  "SkipAlign, seed 1": trained(SHORT, {"seed": 1}),
  "PackedSFT-16k, seed 1": trained(PACKED, {"data.packing_mask": False, "seed": 1}),
}
# Ten keys often leave little between the two best targets: some models are also tested
# at the target that was not chosen.
EXPLORATORY = {
  "Normal-SFT, 48 steps": trained(CONTIGUOUS, {"steps": 48}),
  "SkipAlign, 48 steps": trained(SHORT, {"steps": 48}),
  "Normal-SFT, at 65,536": at_target("normal-sft", 65_536),
  "Normal-SFT, 48 steps, at 32,768": at_target("normal-sft_48_steps", 32_768),
  "Normal-SFT, 48 steps, seed 1": trained(CONTIGUOUS, {"steps": 48, "seed": 1}),
  "SkipAlign, 48 steps, seed 1": trained(SHORT, {"steps": 48, "seed": 1}),
  "Normal-SFT, rate 5e-4": trained(CONTIGUOUS, {"optim.learning_rate": 5e-4}),
  # The choice gave 65,536.
  "Normal-SFT, rate 5e-4, at 32,768": at_target("normal-sft_rate_5e-4", 32_768),
  "SkipAlign, rate 5e-4": trained(SHORT, {"optim.learning_rate": 5e-4}),
  "SkipAlign, L 16,384": trained(  # with the rope of the other runs
    SHORT, {"positions.max_position": 16_384, "rope.target_length": 32_768}
  ),
}


def keys(lengths: str, **options: Any) -> dict[str, Any]:
  """The evaluation `keys` in the test book; `options` may replace all of it."""
  return {"task": "keys", "haystack": BOOK, "lengths": lengths} | options


KEYS = {
  "keys": keys("1024,2048,4096,8192,12288,16384", samples=2),
  # More keys beyond the window, and which other keys are given instead.
  "keys_far": keys("12288,16384", samples=4, seed=1, rivals=True),
  "keys_near": keys("1024,4096", samples=4, seed=1, rivals=True),
  # Up to the longest positions of training; exploratory, not among the claims.
  "keys_long": keys("24576,32768", samples=1, seed=2, rivals=True),
  "keys_longest": keys("32768", samples=2, seed=3, rivals=True),
  # The texts above are the same pages with other keys; these are of a third book.
  "keys_other_book": keys(
    "12288,16384",
    haystack=f"{DATA}/other.txt.gz",
    samples=4,
    own_pages=True,
    seed=4,
    rivals=True,
  ),
  # Which targets would more keys than the ten of CHOOSE choose?
  "keys_validation": keys(
    "12288,16384",
    haystack=f"{DATA}/validation.txt.gz",
    samples=2,
    own_pages=True,
    seed=1001,
  ),
}
OTHER_TESTS = {
  "needle": dict(task="needle", haystack=BOOK, lengths="4096,12288", depths=3),
  # A few needles decide nothing. These are where the first ones differed; exploratory.
  "needle_far": dict(
    task="needle", haystack=BOOK, lengths="12288,16384", depths=5, samples=2, seed=1
  ),
  "perplexity": dict(task="perplexity", files=BOOK, length=16_384, documents=1),
  "misalignment": dict(task="misalignment", source=BOOK, lengths="2048", samples=16),
  "ruler": dict(
    task="ruler", tasks="niah_single_1,niah_multikey_2,vt", lengths="4096", samples=2
  ),
}
CHOOSE = keys("12288,16384", haystack=f"{DATA}/validation.txt.gz", seed=1000)
TARGETS = (16_384, 32_768, 65_536)

TINY = {
  "Normal-SFT": runs.Run(CONFIG, {"positions.strategy": "contiguous"}),
  "SkipAlign": runs.Run(CONFIG),
}
TINY_CHOOSE = dict(task="keys", lengths="900", depths=2, seed=1000)


def get_sweep(variant: str = "") -> runs.Sweep:
  tiny = variant == "tiny"
  table = TINY if tiny else MAIN | METHODS | DATA_AND_SEEDS | EXPLORATORY
  sweep = runs.sweep("Study A", table, KEYS | OTHER_TESTS, variant, "study_a")
  return dataclasses.replace(
    sweep,
    targets=TARGETS[1:] if tiny else TARGETS,
    choose=TINY_CHOOSE if tiny else CHOOSE,
    window=8192,
    claimed=(12_288, 16_384),
    pairs=PAIRS,
    out=sweep.out if variant else OUT,
  )
