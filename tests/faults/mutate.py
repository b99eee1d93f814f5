"""Damage to files: of bytes anywhere, and of values where the file is JSON."""

import copy
import json
import random
from typing import Any

DEEP = "[" * 3000 + "]" * 3000  # deeper than Python recurses
NASTY = (
  None, True, False, 0, 1, -1, 3, 1.5, -0.0, 2**31, 2**60, -(2**63), 2**64, 10**400,
  float("inf"), float("nan"), 1e-320, "", " ", "x", "0", "\0", "\ud800", "é",
  "{{ 1/0 }}", "../../x", "/etc/passwd", "a" * 5000, "<|im_start|>",
  "<|im_end|>", "</s>",
  [], [[]], [None], [0, 0], [-1, 2**60], ["x"], {}, {"x": {}}, {"": None},
  "@deep",
)  # fmt: skip
INTEGERS = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**60, 2**63, 2**64 - 1)


def of_bytes(rng: random.Random, whole: bytes, first: int = 4096) -> bytes:
  """One to four changes; half of the places lie in the first bytes, the header."""
  data = bytearray(whole)
  for _ in range(rng.randint(1, 4)):
    at = rng.randrange(min(len(data), first) if rng.random() < 0.5 else len(data))
    match rng.randrange(7):
      case 0:
        data[at] = rng.randrange(256)
      case 1:
        data[at] ^= 1 << rng.randrange(8)
      case 2:
        del data[at : at + rng.randint(1, 64)]
      case 3:
        data[at:at] = rng.randbytes(rng.randint(1, 64))
      case 4:
        data[at : at + 8] = rng.choice(INTEGERS).to_bytes(8, "little")
      case 5:
        data[at : at + 4] = (rng.choice(INTEGERS) % 2**32).to_bytes(4, "little")
      case 6:
        other = rng.randrange(len(data))
        data[at : at + 32] = data[other : other + 32]
    if not data:
      return b""
  return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def of_json(rng: random.Random, whole: bytes) -> bytes:
  """One to three values replaced, removed or doubled; rarely damage to the bytes."""
  if rng.random() < 0.2:
    return of_bytes(rng, whole)
  value = json.loads(whole)
  for _ in range(rng.randint(1, 3)):
    places = list(_places(value))
    if not places:
      break
    holder, key = rng.choice(places)
    match rng.randrange(5):
      case 0:
        del holder[key]
      case 1 if isinstance(holder, dict):
        holder[str(rng.choice(NASTY))] = holder.pop(key)
      case 2 if len(places) > 1:
        other, its = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[its]))
      case _:
        holder[key] = copy.deepcopy(rng.choice(NASTY))
  return json.dumps(value).replace('"@deep"', DEEP).encode()


def _places(value: Any):
  """(container, key) of every value, however deep; of long lists a few."""
  keys = value.keys() if isinstance(value, dict) else range(len(value))
  for key in list(keys)[:40]:
    yield value, key
    if isinstance(value[key], dict | list):
      yield from _places(value[key])
