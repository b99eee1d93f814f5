"""Seals: sizes and checksums of the files of a folder, kept in the folder.

Orbax notices damage in a checkpoint's indices but not in its arrays: a flipped bit
there is a wrong weight. CRC-32 finds every single flip and every truncation, at the
speed of memory; it is no protection against someone who means harm.
"""

import pathlib
import zlib

from skipalign_jax.hf import safetensors_io

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
  safetensors_io.write_json(folder / FILE, sealed)


def damage(folder: pathlib.Path) -> str:
  """What differs from the seal, in words; empty when nothing does.

  A folder without a seal has nothing to differ from.
  """
  if not (folder / FILE).exists():
    return ""
  try:
    sealed = safetensors_io.read_json(folder / FILE)
    for name, (size, checksum) in sealed.items():
      path = folder / name
      if not path.is_file():
        return f"{name} is missing"
      if (found := path.stat().st_size) != size:
        return f"{name} has {found:,} of {size:,} bytes"
      if _measure(path)[1] != checksum:
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
