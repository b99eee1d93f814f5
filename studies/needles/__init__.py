"""SkipAlign in miniature: many seeds of a tiny model that is asked for needles."""
