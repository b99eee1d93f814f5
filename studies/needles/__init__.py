"""SkipAlign in miniature: needles in haystacks, many seeds of a tiny model."""
