"""Table 2 of SkipAlign (arXiv 2405.03939): skipping strategies, long and short tasks.

Commands:
  python -m skipalign_jax.sweep --config=configs/paper_table2.py --run \
    --eval.longbench.prompts=FOLDER --eval.short.unsafe_code=True
  python -m skipalign_jax.sweep --config=configs/paper_table2.py:tiny --run
Hardware: 8 x A100 80 GB per run. Not run by us except :tiny.

Runs that are also in Table 1 or Figure 4 are trained and evaluated once. HumanEval runs
programs that a model wrote: allow it with --eval.short.unsafe_code=True, or leave it
out with --eval.short.tasks=mmlu,bbh,tydiqa_gold.
"""

from skipalign_jax.sweep import runs

YI = "configs/yi_6b_200k.py"
COLUMNS = ("LongBench", "MMLU", "BBH", "TydiQA", "Codex-Eval (HumanEval)")


def paper(*numbers: float) -> dict[str, float]:
  return dict(zip(COLUMNS, numbers, strict=True))


def get_sweep(variant: str = "") -> runs.Sweep:
  strategy = lambda name: {"positions.strategy": name}
  table = {
    "Yi-6B-200K": runs.Run(
      model="01-ai/Yi-6B-200K",
      evaluate={"chat": False},
      paper=paper(39.1, 64.2, 43.0, 16.2, 19.9),
    ),
    "Yi-6B-200K + Normal-SFT": runs.Run(
      YI, strategy("contiguous"), paper=paper(43.7, 60.5, 44.6, 32.6, 30.4)
    ),
    "Yi-6B-200K + Skip-All": runs.Run(
      YI, strategy("skip_all"), paper=paper(45.1, 59.6, 38.7, 31.7, 26.9)
    ),
    "Yi-6B-200K + Skip-Inner": runs.Run(
      YI, strategy("skip_inner"), paper=paper(42.4, 59.5, 41.5, 31.0, 29.3)
    ),
    "Yi-6B-200K + SkipAlign": runs.Run(  # Skip-Outer
      YI, paper=paper(45.3, 61.1, 42.6, 30.3, 28.5)
    ),
  }
  evaluations = {"longbench": runs.LONGBENCH, "short": runs.SHORT}
  return runs.sweep("Table 2: long and short tasks", table, evaluations, variant)
