"""Prefill and decoding against transformers + PyTorch.

python benchmarks/generate.py [--lengths=1024,4096] [--dtypes=bfloat16,float32]
  [--new_tokens=32] [--rounds=5] [--out=FILE]

One prompt, greedy, weights and cache in the dtype, no stop token. The two sides
alternate. prefill is the time to the first token; decode the time from the first to
the last, over new_tokens - 1. transformers runs a plain loop of forward passes on
its DynamicCache, which is faster than its `generate`; ours is `inference.Engine`.

The number of equal tokens is printed: in float32 all, except ties. The peak is of the
whole process, with libraries and weights.
"""

import time

import harness
import numpy as np

from skipalign_jax.hf import reference, weights
from skipalign_jax.model import inference, model_config


class Ours:
  def __init__(self, model: str, length: int, dtype: str):
    opened = harness.open_model(model)
    params = reference.load_params(opened, dtype)
    self._engine = inference.Engine(params, opened.config, dtype)
    self._prompt = harness.dialogue(model, length)["tokens"][0].tolist()

  def run(self, new_tokens: int) -> tuple[float, float, list[int]]:
    """(seconds to the first token, seconds from there to the last, tokens)."""
    steps = self._engine.generate([self._prompt], new_tokens, stop_ids=())
    begin = time.perf_counter()
    tokens = list(next(steps))
    first = time.perf_counter()
    tokens += [token for (token,) in steps]
    return first - begin, time.perf_counter() - first, tokens

  def peak(self) -> int:
    """Maximum of the bytes resident in this process."""
    return harness.resident_bytes("VmHWM")


class Torch:
  def __init__(self, model: str, length: int, dtype: str):
    import torch
    import transformers

    opened = harness.open_model(model)
    shape = transformers.LlamaConfig(**model_config.to_hf(opened.config))
    shape._attn_implementation = "sdpa"
    self._model = transformers.LlamaForCausalLM(shape)
    state = {
      name: torch.tensor(tensor)
      for name, tensor in weights.hf_tensors(opened.weights, "float32")
    }
    self._model.load_state_dict(state, strict=False)
    self._model.tie_weights()
    self._model.to(getattr(torch, dtype)).eval()
    self._prompt = torch.tensor(harness.dialogue(model, length)["tokens"]).long()

  def run(self, new_tokens: int) -> tuple[float, float, list[int]]:
    import torch
    import transformers

    with torch.inference_mode():
      begin = time.perf_counter()
      cache = transformers.DynamicCache(config=self._model.config)
      forward = lambda tokens: self._model(
        input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
      ).logits[:, -1:]
      tokens = [forward(self._prompt).argmax(-1)]
      first_token = tokens[0].item()
      first = time.perf_counter()
      for _ in range(new_tokens - 1):
        tokens.append(forward(tokens[-1]).argmax(-1))
      rest = [token.item() for token in tokens[1:]]
      return first - begin, time.perf_counter() - first, [first_token, *rest]

  def peak(self) -> int:
    """Maximum of the bytes resident in this process."""
    return harness.resident_bytes("VmHWM")


def measure(args, length: int, dtype: str) -> dict:
  """Both sides at one length and dtype."""
  common = dict(model=args.model, length=length, dtype=dtype)
  workers = harness.start(
    {
      "ours": lambda: harness.Worker(Ours, **common),
      "torch": lambda: harness.Worker(Torch, **common),
    }
  )
  running = {n: w for n, w in workers.items() if isinstance(w, harness.Worker)}
  turns = {
    name: lambda worker=worker: worker("run", new_tokens=args.new_tokens)
    for name, worker in running.items()
  }
  try:
    first, failed = harness.rounds(turns, 1)  # compiles; not timed
    turns = {name: turn for name, turn in turns.items() if name in first}
    results, failed_later = harness.rounds(turns, args.rounds)
    peaks = {name: running[name]("peak") for name in results}
  finally:
    for worker in running.values():
      worker.close()
  prefill = {name: [run[0] for run in runs] for name, runs in results.items()}
  decode = {
    name: [run[1] / (args.new_tokens - 1) for run in runs]
    for name, runs in results.items()
  }
  result = {
    "length": length,
    "dtype": dtype,
    "prefill_seconds": {n: harness.spread(x) for n, x in prefill.items()},
    "decode_seconds_a_token": {n: harness.spread(x) for n, x in decode.items()},
    "peak_bytes": peaks,
    "left_out": {n: w for n, w in workers.items() if isinstance(w, str)}
    | failed
    | failed_later,
  }
  if len(results) == 2:
    ours, theirs = (np.array(first[name][0][2]) for name in ("ours", "torch"))
    differ = np.flatnonzero(ours != theirs)
    result["equal_tokens"] = int(differ[0]) if len(differ) else len(ours)
    for name, seconds in (("prefill", prefill), ("decode", decode)):
      result[f"{name}_ratio"] = harness.compare(
        "ours", seconds["ours"], "torch", seconds["torch"]
      )
  return result


def show(result: dict) -> None:
  """Prints one length and dtype."""
  rows = []
  for name, prefill in result["prefill_seconds"].items():
    decode = result["decode_seconds_a_token"][name]
    rows.append(
      [
        name,
        harness.show(prefill),
        f"{result['length'] / prefill['median']:.0f}",
        harness.show(decode, ".4f"),
        f"{1 / decode['median']:.1f}",
        f"{result['peak_bytes'][name] / 2**30:.2f}",
      ]
    )
  print(f"\nprompt of {result['length']} tokens, {result['dtype']}")
  head = ["", "prefill, s", "tok/s", "decode, s per token", "tok/s", "peak, GiB"]
  print(harness.table(head, rows))
  if "equal_tokens" in result:
    print(f"  prefill: {result['prefill_ratio']['text']}")
    print(f"  decode: {result['decode_ratio']['text']}")
    print(f"  the first {result['equal_tokens']} tokens of the replies are equal")
  for name, error in result["left_out"].items():
    print(f"  {name} left out: {error}")


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--lengths", default="1024,4096")
  parser.add_argument("--dtypes", default="bfloat16,float32")
  parser.add_argument("--new_tokens", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  before = harness.environment()
  results = []
  for dtype in args.dtypes.split(","):
    for length in harness.numbers(args.lengths):
      results.append(measure(args, length, dtype))
      show(results[-1])
  harness.report(args, before, results)


if __name__ == "__main__":
  main()
