"""A study of SmolLM2 with a plan that is committed before any test text is read."""
