"""Peak memory and time of convert import and export on a synthetic model.

python benchmarks/convert_memory.py [--shape=1b|7b] [--folder=runs/convert_memory]

Writes a zero-filled bf16 HF folder of the shape (2.2 GB for 1b, 13.5 GB for 7b,
sparse if the file system allows it), imports it and exports the result, each in its
own process, and prints the peak resident memory of each as JSON. Needs about three
times the model's size on disk; everything is deleted at the end.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np

from skipalign_jax import convert
from skipalign_jax.data import tokenizer
from skipalign_jax.hf import names
from skipalign_jax.model import model_config

_7B = {
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 4096,
}
SHAPES = {
  "7b": _7B,
  "1b": _7B
  | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
  },
}
SHARD_BYTES = 5 * 10**9


def write_model(folder: pathlib.Path, hf: dict) -> int:
  """Writes a sharded HF folder of zeros; returns its bytes."""
  folder.mkdir(parents=True)
  config = model_config.from_hf(hf)
  (folder / "config.json").write_text(json.dumps(model_config.to_hf(config)))
  tokenizer.byte_tokenizer().save_pretrained(folder)
  shards, size = [{}], 0
  for name, shape in names.hf_shapes(config).items():
    count = 2 * int(np.prod(shape))
    if size + count > SHARD_BYTES:
      shards.append({})
      size = 0
    header = {"dtype": "BF16", "shape": shape, "data_offsets": [size, size + count]}
    shards[-1][name] = header
    size += count
  weight_map, total = {}, 0
  for i, shard in enumerate(shards):
    file = folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    header = json.dumps(shard).encode()
    end = max(entry["data_offsets"][1] for entry in shard.values())
    with file.open("wb") as stream:
      stream.write(len(header).to_bytes(8, "little") + header)
      stream.truncate(8 + len(header) + end)
    weight_map |= dict.fromkeys(shard, file.name)
    total += end
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return total


def measure(arguments: list[str]) -> dict[str, float]:
  """Runs one conversion in a child process: seconds and peak resident GB."""
  start = time.perf_counter()
  child = subprocess.run(
    [sys.executable, __file__, "--child", *arguments],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  seconds = time.perf_counter() - start
  return {"seconds": round(seconds, 1), **json.loads(child.stdout.splitlines()[-1])}


def main() -> None:
  if sys.argv[1:2] == ["--child"]:
    convert.main(sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"peak_rss_gb": round(peak, 2)}), flush=True)
    return
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--shape", default="1b", choices=SHAPES)
  parser.add_argument("--folder", default="runs/convert_memory")
  args = parser.parse_args()
  folder = pathlib.Path(args.folder)
  if folder.exists():
    raise SystemExit(f"{folder} exists; name a new --folder")
  try:
    total = write_model(folder / "hf", SHAPES[args.shape])
    print(f"{args.shape}: {total / 1e9:.2f} GB in bfloat16", flush=True)
    for command, source, out in (
      ("import", "hf", "native"),
      ("export", "native", "out"),
    ):
      flags = [command, f"--model={folder / source}", f"--out={folder / out}"]
      print(command, json.dumps(measure(flags)), flush=True)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
  main()
