"""Converts models between HF folders, GGUF files and workdirs.

  python -m skipalign_jax.convert import --model=REF --out=DIR
  python -m skipalign_jax.convert export --model=REF --out=DIR [--dtype=bfloat16]
  python -m skipalign_jax.convert verify --model=REF

`import` makes a workdir that training can start from (model.init_from=DIR),
values untouched. `export` makes an HF folder. `verify` compares our logits with
those of transformers on the same weights and needs torch. REF is a hub id, an
HF folder, a .gguf file or a workdir[@step].
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import card, export, native, parity, reference, weights
from skipalign_jax.runtime import errors, files, terminal

_CONSOLE = terminal.Console()


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  args = _parser().parse_args(argv)
  return args.run(args)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m skipalign_jax.convert",
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="import|export|verify")
  for name, run in (("import", _import), ("export", _export), ("verify", _verify)):
    command = commands.add_parser(
      name,
      usage=f"python -m skipalign_jax.convert {name} --model=REF [options]",
    )
    command.set_defaults(run=run)
    command.add_argument("--model", required=True, help=reference.FORMS)
    command.add_argument(
      "--tokenizer", default="", help="reference to take the tokenizer from"
    )
    if name != "verify":
      command.add_argument("--out", required=True, help="new folder")
    if name == "export":
      command.add_argument("--dtype", default="bfloat16", choices=export.DTYPES)
      command.add_argument("--max_shard_gb", type=float, default=5.0)
    if name == "verify":
      command.add_argument("--length", type=int, default=64, help="tokens compared")
      command.add_argument("--tolerance", type=float, default=1e-3)
  return parser


def _import(args: argparse.Namespace) -> int:
  model = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.tokenizer or args.model)
  reference.check_vocabulary(tokenizer, model.config)
  _say(model)
  start = time.perf_counter()
  with files.new_folder(args.out) as folder:
    native.write_config(
      folder,
      native.Description(
        model_config=model.config,
        hf_config=model.hf_config,
        generation_config=model.generation_config,
        base=args.model,
        versions=card.library_versions(),
      ),
    )
    export.save_tokenizer(tokenizer, folder / native.TOKENIZER)
    native.write_params(folder, 0, _announced(model))
  _CONSOLE.print(f"{args.out}: written in {time.perf_counter() - start:.0f} s")
  _CONSOLE.print(f"train from it with --config.model.init_from={args.out}")
  return 0


def _announced(model: reference.Model) -> Iterator[weights.Parameter]:
  for i, parameter in enumerate(model.weights.values()):
    shape = list(parameter.shape)
    _CONSOLE.print(f"[{i + 1}/{len(model.weights)}] {parameter.path} {shape}")
    yield parameter


def _export(args: argparse.Namespace) -> int:
  model = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.tokenizer or args.model)
  _say(model)
  start = time.perf_counter()
  total = export.export(
    model,
    tokenizer,
    tokenizer_lib.stop_token_ids(tokenizer),
    args.out,
    args.dtype,
    int(args.max_shard_gb * 1e9),
  )
  seconds = time.perf_counter() - start
  written = f"{terminal.size(total)} of weights written in {seconds:.0f} s"
  _CONSOLE.print(f"{args.out}: {written}")
  _CONSOLE.print(
    "load it with transformers.AutoModelForCausalLM.from_pretrained"
    f"({args.out!r}), or here as --model={args.out}"
  )
  return 0


def _verify(args: argparse.Namespace) -> int:
  model = reference.open_model(args.model)
  _say(model)
  worst = 0.0
  for name, difference, scale in parity.compare(model, args.length):
    _CONSOLE.print(
      f"{name}: largest difference {difference:.2e} among logits up to {scale:.1f}"
    )
    # NaN compares false with everything and must not pass for agreement.
    worst = max(worst, difference) if np.isfinite(difference) else np.inf
  if worst > args.tolerance:
    _CONSOLE.print(f"FAILED: above the tolerance of {args.tolerance:.0e}")
    return 1
  _CONSOLE.print(f"agrees with transformers within {args.tolerance:.0e}")
  return 0


def _say(model: reference.Model) -> None:
  stored = model.weights["embed/weight"].dtype.name
  where = "" if model.location.step is None else f", step {model.location.step}"
  _CONSOLE.print(
    f"{model.reference}: {model.kind}{where}, {model.config.num_params():,} "
    f"parameters in {stored}"
  )


if __name__ == "__main__":
  errors.run_command(main)
