"""lm-evaluation-harness with our models."""
