"""Seals: sizes and checksums of the files of a folder, kept in the folder.

Orbax notices damage in a checkpoint's indices but not in its arrays: a flipped bit
there is a wrong weight. CRC-32 finds every single flip and every truncation, at the
speed of memory; it is no protection against someone who means harm.
"""

import json
import pathlib
import zlib

from skipalign_jax.runtime import untrusted

FILE = "seal.json"
_BLOCK = 2**24


def write(folder: pathlib.Path) -> None:
  """Seals all files below the sub-folders of `folder`; its own files may change."""
  sealed = {
    str(path.relative_to(folder)): _measure(path)
    for sub in sorted(folder.iterdir())
    if sub.is_dir()
    for path in sorted(sub.rglob("*"))
    if path.is_file()
  }
  new = folder / f".{FILE}.new"
  new.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")
  new.replace(folder / FILE)


def damage(folder: pathlib.Path, sub: str = "", most: int | None = None) -> str:
  """What differs from the seal, in words; empty when nothing does.

  A folder without a seal has nothing to differ from.

  Args:
    folder: what was sealed.
    sub: the sub-folder that is looked at; "" looks at all of them.
    most: bytes of the files whose contents are read, not just their sizes; None reads
      all.
  """
  if not (folder / FILE).exists():
    return ""
  try:
    sealed = untrusted.parse_json(untrusted.read(folder / FILE, untrusted.MOST_JSON))
    for name, (size, checksum) in sealed.items():
      if not name.startswith(f"{sub}/" if sub else ""):
        continue
      path = folder / name
      if not path.is_file():
        return f"{name} is missing"
      if (found := path.stat().st_size) != size:
        return f"{name} has {found:,} of {size:,} bytes"
      if (most is None or size <= most) and _measure(path)[1] != checksum:
        return f"{name} has other contents than were written"
  except (OSError, ValueError, TypeError, AttributeError) as error:
    return f"cannot be checked: {error}"
  return ""


def _measure(path: pathlib.Path) -> tuple[int, int]:
  size = checksum = 0
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return size, checksum
