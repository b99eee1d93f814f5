"""Names of files that programs tend to take for something else than a name."""

import random

PIECES = [
  *"[]{}()<>*?!#%&+,:;=@^`|~$'\"\\ .-_",
  *("[1e-4]", "[!a]", "[a-z]", "**", "{a,b}", "${HOME}", "$(id)", "`id`", "~root"),
  *("%2F", "%2e%2e", "%00", "%25", "%", "%%", "%s", "%d", "{}", "{0}", "{x!r:>9}"),
  *("#1", "?a=b", "a|b", "@5", "@latest", "5", "0", "None", "null", "config.json"),
  *("gs:", "s3:", "file:", "hdfs:", "memory:", "hub:", "builtin:recall", "::", "zip:"),
  *("gs://b", "s3://b", "file:///x", "http://x", "memory://", "a//b", "./", "../", "/"),
  *("...", "..", ".hidden", ".tar.gz", ".gguf", ".json", ".partial", ".new", "-rf"),
  *("\t", "\n", "\r", "\x0b", "\x1b[31m", "\x07", "\x7f", "\x85", "\u2028", "\ufeff"),
  *("é", "e\u0301", "Å", "A\u030a", "ﬁ", "İ", "ß", "шаг", "步骤", "שלום", "\u202eabc"),
  *("👩\u200d👩\u200d👧", "\u200b", "\U0010ffff", "／", "＊", "\u0300", "𝔘", "\u3099"),
  *("\0", "\udc80", "\udcff", "\udce9x", "a" * 60, "é" * 40, "x" * 230, "🙂" * 30),
]


def names(count: int, seed: int = 0) -> list[str]:
  """Random names and paths; each of `PIECES` is in one of the first, as it is."""
  rng = random.Random(seed)
  found = [f"{rng.choice(['', 'a', 'run_'])}{piece}" for piece in PIECES]
  rng.shuffle(found)
  while len(found) < count:
    found.append("".join(rng.choices(PIECES, k=rng.randint(1, 5))))
  return found[:count]
