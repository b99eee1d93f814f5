"""Converts models between HF folders, GGUF files and workdirs.

  python -m skipalign_jax.convert import --model=REF --out=DIR
  python -m skipalign_jax.convert export --model=REF --out=DIR [--dtype=bfloat16]
  python -m skipalign_jax.convert verify --model=REF

`import` makes a workdir that training can start from (model.init_from=DIR), with the
values of the weights unchanged. `export` makes an HF folder. `verify` compares our
logits with those of transformers on the same weights and needs torch. REF is a hub id,
an HF folder, a .gguf file or a workdir[@step].
"""

from skipalign_jax.runtime import arguments, errors

COMMANDS = ("import", "export", "verify")
DTYPES = ("bfloat16", "float32", "float16", "keep")


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  args = _parser().parse_args(argv)
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import convert

  if args.command == "import":
    return convert.import_model(args.model, args.tokenizer, args.out)
  if args.command == "export":
    shard_bytes = int(args.max_shard_gb * 1e9)
    return convert.export_model(
      args.model, args.tokenizer, args.out, args.dtype, shard_bytes
    )
  return convert.verify(args.model, args.length, args.tolerance)


def _parser() -> arguments.Parser:
  parser = arguments.Parser(prog="python -m skipalign_jax.convert", description=__doc__)
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="|".join(COMMANDS)
  )
  for name in COMMANDS:
    command = commands.add_parser(
      name,
      usage=f"python -m skipalign_jax.convert {name} --model=REF [options]",
    )
    add = command.add_argument
    add("--model", required=True, help="hub id, folder, .gguf or workdir[@step]")
    add("--tokenizer", default="", help="reference to take the tokenizer from")
    if name != "verify":
      add("--out", required=True, help="new folder")
    if name == "export":
      add("--dtype", default="bfloat16", choices=DTYPES, help="of the weights")
      add("--max_shard_gb", type=float, default=5.0, help="largest weight file")
    if name == "verify":
      add("--length", type=int, default=64, help="tokens compared")
      add("--tolerance", type=float, default=1e-3, help="of a logit")
  return parser


if __name__ == "__main__":
  errors.run_command(main)
