"""What mkdocs does not do by itself (mkdocs.yml names this file; `make docs` builds).

The configuration reference is written from `skipalign_jax/config.py`. Pages that live
outside docs/ (README, CONTRIBUTING, notes of benchmarks …) and the notebooks join the
site, and links between files of the repository become links between pages.
"""

import ast
import os
import pathlib
import re

from skipalign_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
MODULE = ROOT / "skipalign_jax" / "config.py"
REFERENCE = "configuration.md"
# Files outside docs/ that are pages, or that pages show or link to.
PATTERNS = (
  "benchmarks/*.md",
  "colabs/*.ipynb",
  "studies/*/*.md",
  "studies/*/results/*.md",
  "studies/*/results/*.png",
  "studies/*/results/*.json",
)
OPENING = "<!-- the opening of README.md -->"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
INTRODUCTION = (
  "Written from `skipalign_jax/config.py` when this site was built. Set a key in a "
  "config file (`c.optim.learning_rate = 2e-5`) or behind a command "
  "(`--config.optim.learning_rate=2e-5`); an unknown key, or a value that cannot be, "
  'is an error that says what to do. "Unset" keys follow the model, or must be given '
  "where the comment says so. Nothing has a second default elsewhere."
)


def outside() -> dict[str, str]:
  """Files outside docs/ that the site has → their pages."""
  pages = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch.md",
  }
  for pattern in PATTERNS:
    found = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    pages |= {name: name for name in found}
  return pages


def linked(text: str, source: str, page: str) -> str:
  """The text with its links to files as links to pages.

  Args:
    text: Markdown.
    source: its file, from the root of the repository.
    page: its page, from the root of the site.

  Raises:
    ValueError: a link leads to no file. A file that the site does not have keeps
      its words and loses its link.
  """
  pages = outside()

  def page_of(match: re.Match[str]) -> str:
    words, link, anchor = match[1], match[2], match[3] or ""
    if ":" in link:
      return match[0]
    target = os.path.normpath(os.path.join(os.path.dirname(source), link))
    if target == f"docs/{REFERENCE}":  # written by `reference`
      to = REFERENCE
    elif not (ROOT / target).exists():
      raise ValueError(f"{source} links to {link}, which does not exist")
    elif target in pages:
      to = pages[target]
    elif target.startswith("docs/"):
      to = target.removeprefix("docs/")
    else:
      return words
    return f"[{words}]({os.path.relpath(to, os.path.dirname(page) or '.')}{anchor})"

  return _LINK.sub(page_of, text)


def opening() -> str:
  """README.md up to its first section, without the title."""
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  return text.partition("\n## ")[0].partition("\n")[2].strip()


def reference() -> str:
  """Every key of the config with its default and comments, as Markdown.

  A comment above a key, or behind it, is that key's; above a group, the group's.
  """
  lines = MODULE.read_text(encoding="utf-8").splitlines()
  function = next(
    node
    for node in ast.parse("\n".join(lines)).body
    if isinstance(node, ast.FunctionDef) and node.name == "default"
  )
  told = ["# Configuration", "", INTRODUCTION]
  table = ["", "| key | default | |", "|---|---|---|"]
  told += table
  defaults = config_lib.default()
  for node in function.body:
    if not isinstance(node, ast.Assign) or not isinstance(
      node.targets[0], ast.Attribute
    ):
      continue
    name = ast.unparse(node.targets[0]).removeprefix("c.")
    value = defaults
    for part in name.split("."):
      value = value[part]
    comment = _comment(lines, node)
    if isinstance(value, config_lib.ConfigDict):
      told += ["", f"## {name}", "", comment]
      told += table if len(value) else []
    else:
      told.append(f"| `{name}` | {_shown(value)} | {comment} |")
  return "\n".join(told) + "\n"


def _comment(lines: list[str], node: ast.stmt) -> str:
  """What stands above a statement and behind it; no sign of it is Markdown's."""
  above, at = [], node.lineno - 2
  while lines[at].strip().startswith("#"):
    above.insert(0, lines[at].strip().lstrip("# "))
    at -= 1
  behind = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip("# ")
  text = " ".join([*above, behind] if behind else above)
  return re.sub(r"([|*<])", r"\\\1", text)


def _shown(value: object) -> str:
  if value is None:
    return "unset"
  return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def on_files(files, config):
  """Adds the pages that are not in docs/."""
  from mkdocs.structure import files as files_lib

  add = lambda page, **what: files.append(
    files_lib.File.generated(config, page, **what)
  )
  add(REFERENCE, content=reference())
  for source, page in outside().items():
    if page.endswith(".md"):
      text = (ROOT / source).read_text(encoding="utf-8")
      add(page, content=linked(text, source, page))
    else:
      add(page, abs_src_path=str(ROOT / source))
  return files


def on_page_markdown(markdown, page, config, files):
  """Puts README's opening into its place, and rewrites the links of docs/."""
  if page.file.generated_by:
    return markdown
  if OPENING in markdown:
    first = linked(opening(), "README.md", page.file.src_uri)
    before, behind = markdown.split(OPENING)
    source = f"docs/{page.file.src_uri}"
    rest = (linked(part, source, page.file.src_uri) for part in (before, behind))
    return first.join(rest)
  return linked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
