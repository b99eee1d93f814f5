"""Figure 4 of SkipAlign (arXiv 2405.03939): LongBench over L and p.

L of 50K, 100K and 150K and p of 0.2, 0.5 and 0.8, and Normal-SFT. The figure's text
names neither the base model nor the pairs that were run: here Yi-6B-200K, as in the
other ablation (Table 2), and all nine pairs (choices).

Commands:
  python -m skipalign_jax.sweep --config=configs/paper_figure4.py --run \
    --eval.longbench.prompts=FOLDER
  python -m skipalign_jax.sweep --config=configs/paper_figure4.py:tiny --run
Hardware: 8 x A100 80 GB per run. Not run by us except :tiny.
"""

from skipalign_jax.sweep import runs

YI = "configs/yi_6b_200k.py"


def get_sweep(variant: str = "") -> runs.Sweep:
  table = {
    "Yi-6B-200K + Normal-SFT": runs.Run(
      YI, {"positions.strategy": "contiguous"}, paper={"Avg.": 43.7}
    )
  }
  for L in (50_000, 100_000, 150_000):
    for p in (0.2, 0.5, 0.8):
      if (L, p) == (100_000, 0.5):  # the paper's own choice
        run = runs.Run(YI, paper={"Avg.": 45.3}, point=(L, p))
        table["Yi-6B-200K + SkipAlign"] = run
      else:
        changes = {"positions.max_position": L, "positions.skip_prob": p}
        table[f"Yi-6B-200K + SkipAlign, L={L // 1000}K p={p}"] = runs.Run(
          YI, changes, point=(L, p)
        )
  return runs.sweep(
    "Figure 4: LongBench over L and p", table, {"longbench": runs.LONGBENCH}, variant
  )
