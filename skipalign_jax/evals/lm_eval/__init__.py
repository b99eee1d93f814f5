"""lm-evaluation-harness, answered by our models."""
