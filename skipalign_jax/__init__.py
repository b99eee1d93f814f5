"""SkipAlign in JAX: long-context alignment from short samples."""

import os

# transformers is used for tokenizers and configs only; it need not say, at every
# start, that there is no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
