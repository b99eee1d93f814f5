"""Sizes and checksums of the files of a folder, kept in the folder.

Orbax notices damage in a checkpoint's indices but not in its arrays: a flipped bit
there is a wrong weight. CRC-32 finds every single flipped bit and every truncation, as
fast as memory is read; it does not protect against intended changes.
"""

import pathlib
import zlib

from skipalign_jax.runtime import files

FILE = "seal.json"
_BLOCK_BYTES = 2**24


def write(folder: pathlib.Path) -> None:
  """Writes the checksums of all files below the sub-folders of `folder`.

  Files directly in `folder` are left out; they may change.
  """
  found = {
    str(path.relative_to(folder)): size_and_checksum(path)
    for sub in sorted(folder.iterdir())
    if sub.is_dir()
    for path in sorted(sub.rglob("*"))
    if path.is_file()
  }
  files.write_json(folder / FILE, found)


def damage(folder: pathlib.Path, sub: str = "", max_bytes: int | None = None) -> str:
  """Describes the first file that differs from its checksum; empty if none does.

  A folder without checksums counts as undamaged.

  Args:
    folder: whose files are checked.
    sub: the sub-folder to check; "" checks all of them.
    max_bytes: of larger files only the size is checked; None reads all files.
  """
  if not (folder / FILE).exists():
    return ""
  try:
    for name, (size, checksum) in files.read_json(folder / FILE).items():
      if not name.startswith(f"{sub}/" if sub else ""):
        continue
      path = folder / name
      if not path.is_file():
        return f"{name} is missing"
      if (found := path.stat().st_size) != size:
        return f"{name} has {found:,} bytes instead of {size:,}"
      is_read = max_bytes is None or size <= max_bytes
      if is_read and size_and_checksum(path)[1] != checksum:
        return f"{name} differs from its checksum"
  except (OSError, ValueError, TypeError, AttributeError) as error:
    return f"its checksums cannot be compared: {error}"
  return ""


def size_and_checksum(path: pathlib.Path) -> tuple[int, int]:
  """Bytes and CRC-32 of a file."""
  size = checksum = 0
  with path.open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return size, checksum
