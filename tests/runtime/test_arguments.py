"""Command lines read by argparse: unknown arguments, and flags of subcommands."""

import pytest

from skipalign_jax.runtime import arguments


def parser():
  made = arguments.Parser(prog="prog")
  commands = made.add_subparsers(dest="command", required=True)
  for name, flag in (("import", "--out"), ("verify", "--length")):
    commands.add_parser(name, usage=f"prog {name} [options]").add_argument(flag)
  return made


def test_flags_are_those_of_the_subcommand():
  found = parser().parse_args(["verify", "--length=3"])
  assert (found.command, found.length) == ("verify", "3")


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["verify", "--lenght=3"], "argument '--lenght=3'; did you mean --length?"),
    (["import", "--length=3"], "argument '--length=3'; --help lists the arguments"),
    (["import", "stray"], "argument 'stray'; --help lists the arguments"),
    (["imprt"], "invalid choice: 'imprt' (choose from 'import', 'verify')"),
  ],
)
def test_unknown_arguments_are_errors_of_the_subcommand(argv, message, capsys):
  with pytest.raises(SystemExit) as caught:
    parser().parse_args(argv)
  assert caught.value.code == 2
  printed = capsys.readouterr().err
  assert message in printed
  assert argv[0] == "imprt" or f"usage: prog {argv[0]} [options]" in printed
