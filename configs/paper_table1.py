"""Table 1 of SkipAlign (arXiv 2405.03939): LongBench of all methods, as one sweep.

Commands:
  python -m skipalign_jax.sweep --config=configs/paper_table1.py            # the runs
  python -m skipalign_jax.sweep --config=configs/paper_table1.py --run \
    --eval.longbench.prompts=FOLDER
  python -m skipalign_jax.sweep --config=configs/paper_table1.py:tiny --run # minutes
Hardware: 8 x A100 80 GB per run. Not run by us except :tiny.

Not here: GPT-3.5-Turbo-16k, a service, and SEext-LLAMA-2-7B-chat-16k, whose attention
(Self-Extend) is not part of this project.

Choices that the paper does not describe: NTK to 32K for all runs that read and train on
less, as for the paper's base model; packed rows without a mask between samples, as in
LongChat; 128 x 4096 tokens per step for packed rows too.
"""

from skipalign_jax.sweep import runs

LLAMA, NORMAL = "configs/llama2_ntk.py", "configs/llama2_normal_sft.py"
PACKED, YI = "configs/llama2_packed_sft_50k.py", "configs/yi_6b_200k.py"
COLUMNS = ("Avg.", "S-Doc QA", "M-Doc QA", "Summ", "Few-shot", "Code")


def paper(*numbers: float) -> dict[str, float]:
  return dict(zip(COLUMNS, numbers, strict=True))


NTK_32K = {"rope.kind": "ntk", "rope.target_length": 32_768}
LLAMA_BASES = {
  "LLAMA-2-7B-chat-4k": runs.Run(
    model="meta-llama/Llama-2-7b-chat-hf",
    evaluate={"max_length": 3500},
    paper=paper(35.2, 24.9, 22.5, 25.0, 60.0, 48.1),
  ),
  "LongChat1.5-7B-32k": runs.Run(
    model="lmsys/longchat-7b-v1.5-32k",
    evaluate={"chat": False},  # its template is not in its tokenizer
    paper=paper(36.9, 28.7, 20.6, 26.6, 60.0, 54.2),
  ),
  "LLAMA-2-7B-NTK32k": runs.Run(
    model="meta-llama/Llama-2-7b-hf",
    evaluate={"chat": False} | NTK_32K,
    paper=paper(31.7, 16.2, 7.3, 15.4, 66.7, 63.4),
  ),
}


def get_sweep(variant: str = "") -> runs.Sweep:
  k = 64 if variant == "tiny" else 1024  # tokens of a "K" in row lengths
  unmasked = {"data.packing": True, "data.packing_mask": False}
  packed = lambda length, batch: {
    "data.seq_len": length * k,
    "data.packing_mask": False,
    "batch_size": 8 if variant == "tiny" else batch,
  }
  yi_packed = {"positions.strategy": "contiguous"} | unmasked | packed(16, 32)
  table = LLAMA_BASES | {
    "LLAMA-2-7B + Normal-SFT": runs.Run(
      NORMAL, paper=paper(41.5, 31.3, 32.7, 26.0, 65.3, 57.4)
    ),
    "LLAMA-2-7B + PackedSFT-16k": runs.Run(
      PACKED,
      packed(16, 32) | {"rope.target_length": 32_768},
      paper=paper(42.6, 31.6, 32.8, 26.2, 67.9, 60.5),
    ),
    "LLAMA-2-7B + PackedSFT-32k": runs.Run(
      PACKED,
      packed(32, 16) | {"rope.target_length": 32_768},
      paper=paper(41.6, 30.0, 32.2, 26.2, 67.3, 58.0),
    ),
    "LLAMA-2-7B + PackedSFT-50k": runs.Run(
      PACKED, packed(50, 8), paper=paper(43.6, 36.0, 37.0, 27.7, 63.8, 58.5)
    ),
    "LLAMA-2-7B + SkipAlign": runs.Run(
      LLAMA, paper=paper(44.1, 38.6, 33.8, 26.1, 67.6, 59.6)
    ),
    "Yi-6B-200K": runs.Run(
      model="01-ai/Yi-6B-200K",
      evaluate={"chat": False},
      paper=paper(39.1, 25.1, 33.8, 25.6, 56.6, 62.0),
    ),
    "Yi-6B-200K + Normal-SFT": runs.Run(
      YI,
      {"positions.strategy": "contiguous"},
      paper=paper(43.7, 37.0, 35.0, 26.8, 65.8, 59.0),
    ),
    "Yi-6B-200K + PackedSFT-16k": runs.Run(
      YI, yi_packed, paper=paper(44.1, 33.1, 38.2, 27.4, 67.4, 59.7)
    ),
    "Yi-6B-200K + SkipAlign": runs.Run(
      YI, paper=paper(45.3, 40.3, 38.7, 26.1, 66.3, 60.0)
    ),
  }
  return runs.sweep("Table 1: LongBench", table, {"longbench": runs.LONGBENCH}, variant)
