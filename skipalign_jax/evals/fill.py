"""How much text fits into a prompt."""

from collections.abc import Callable


def most(
  tokens: Callable[[int], int], length: int, start: int, end: int = 1 << 62
) -> int:
  """The n ≥ start with tokens(n) ≤ length < tokens(n + 1); 0 if `start` is too many.

  `tokens` grows about linearly, so that a few calls suffice. It is not called with more
  than `end`, which is the result where all of it fits.
  """
  low, low_tokens = start, tokens(start)
  if low_tokens > length:
    return 0
  high = min(2 * start, end)
  while (high_tokens := tokens(high)) <= length:
    if high == end:
      return end
    low, low_tokens = high, high_tokens
    high = min(2 * high, end)
  while high - low > 1:
    share = (length - low_tokens) / (high_tokens - low_tokens)
    n = min(max(low + int(share * (high - low)), low + 1), high - 1)
    n_tokens = tokens(n)
    if n_tokens <= length:
      low, low_tokens = n, n_tokens
    else:
      high, high_tokens = n, n_tokens
  return low
