"""The synthetic study of Long-Short Alignment (arXiv 2506.11769)."""
