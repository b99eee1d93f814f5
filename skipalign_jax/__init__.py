"""SkipAlign in JAX: long-context alignment from short samples."""

__version__ = "0.1.0"
