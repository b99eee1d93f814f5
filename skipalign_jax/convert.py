"""Converts models between HF folders, GGUF files and workdirs.

  python -m skipalign_jax.convert import --model=REF --out=DIR
  python -m skipalign_jax.convert export --model=REF --out=DIR [--dtype=bfloat16]
  python -m skipalign_jax.convert export --format=peft --model=RUN --out=DIR
  python -m skipalign_jax.convert verify --model=REF

`import` makes a workdir that training can start from (model.init_from=DIR), with the
values of the weights unchanged. `export` makes an HF folder, or with --format=peft one
with the adapters of a run alone. `verify` compares our logits with those of
transformers on the same weights and needs torch. REF is a hub id, an HF folder, a .gguf
file, a workdir[@step] or a PEFT adapter[@base].
"""

import sys

from skipalign_jax.runtime import arguments, errors

COMMANDS = ("import", "export", "verify")
DTYPES = ("bfloat16", "float32", "float16", "keep")
FORMATS = {"hf": "bfloat16", "peft": "float32"}  # and their default --dtype
SHARD_GB = 5.0


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  args = _parser().parse_args(argv)
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import convert

  if args.command == "import":
    return convert.import_model(args.model, args.tokenizer, args.out)
  if args.command == "export":
    dtype = args.dtype or FORMATS[args.format]
    if args.format == "peft":
      if args.max_shard_gb != SHARD_GB:
        raise errors.UserError(
          "--max_shard_gb is for --format=hf; adapters are one file. Leave it out"
        )
      return convert.export_adapters(args.model, args.tokenizer, args.out, dtype)
    shard_bytes = int(min(args.max_shard_gb * 1e9, sys.maxsize))
    return convert.export_model(
      args.model, args.tokenizer, args.out, dtype, shard_bytes
    )
  return convert.verify(args.model, args.length, args.tolerance)


def _parser() -> arguments.Parser:
  parser = arguments.Parser(prog="python -m skipalign_jax.convert", description=__doc__)
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="|".join(COMMANDS)
  )
  number = arguments.finite
  for name in COMMANDS:
    command = commands.add_parser(
      name,
      usage=f"python -m skipalign_jax.convert {name} --model=REF [options]",
    )
    add = command.add_argument
    add(
      "--model",
      required=True,
      help="hub id, folder, .gguf, workdir[@step], adapter[@base]",
    )
    if name != "verify":
      add("--tokenizer", default="", help="reference to take the tokenizer from")
      add("--out", required=True, help="new folder")
    if name == "export":
      add("--format", default="hf", choices=list(FORMATS), help="peft: adapters alone")
      add(
        "--dtype", choices=DTYPES, help="of the weights: bfloat16; of adapters: float32"
      )
      add("--max_shard_gb", type=number, default=SHARD_GB, help="largest weight file")
    if name == "verify":
      add("--length", type=int, default=64, help="tokens compared")
      add("--tolerance", type=number, default=1e-3, help="of a logit")
  return parser


if __name__ == "__main__":
  errors.run_command(main)
