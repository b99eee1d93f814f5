"""Additions to mkdocs (mkdocs.yml names this file; `make docs` builds the site).

The configuration reference is written from `skipalign_jax/config.py`. Pages outside
docs/ (README, CONTRIBUTING, notes of benchmarks …) and the notebooks are added to the
site, and links between files of the repository become links between pages.
"""

import os
import pathlib
import re

from skipalign_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
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
  "Written from `skipalign_jax/config.py` when this site was built; "
  "`python -m skipalign_jax.train --help` prints the same. Set a key in a config file "
  "(`c.optim.learning_rate = 2e-5`) or on the command line "
  "(`--config.optim.learning_rate=2e-5`). An unknown key or a value that is not "
  "allowed is an error that says what to do. Numbers must be finite. No other file has "
  "a default of a key."
)


def outside() -> dict[str, str]:
  """Files outside docs/ that are part of the site → their pages."""
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
    ValueError: a link to a file that does not exist. A link to a file that is not
      part of the site becomes plain text.
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
  """Every key of the config with its default, allowed values and meaning."""
  lines = ["# Configuration", "", INTRODUCTION]
  for part in config_lib.SECTIONS:
    lines += ["", f"## {part.name}"] if part.name else []
    lines += ["", _escaped(part.meaning)]
    if part.keys:
      lines += ["", "| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, key in part.full_names().items():
      allowed, meaning = _escaped(key.allowed()), _escaped(key.meaning)
      lines.append(f"| `{name}` | {_shown(key.default)} | {allowed} | {meaning} |")
  return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
  if value is None:
    return "unset"
  return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _escaped(text: str) -> str:
  """The text without signs that Markdown would read."""
  return re.sub(r"([|*<\[\]])", r"\\\1", text)


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
  """Inserts README's opening where a page asks for it; rewrites links of docs/."""
  if page.file.generated_by:
    return markdown
  if OPENING in markdown:
    first = linked(opening(), "README.md", page.file.src_uri)
    before, after = markdown.split(OPENING)
    source = f"docs/{page.file.src_uri}"
    rest = (linked(part, source, page.file.src_uri) for part in (before, after))
    return first.join(rest)
  return linked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
