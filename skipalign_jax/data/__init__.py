"""Chats and texts to batches: sources → chat, text → prepare → packing → pipeline.

Nothing here imports jax: Grain's worker processes stay plain numpy. Heavy libraries
(transformers, datasets, pyarrow, grain) are imported by the functions that use them, so
that a command can print its help without them.
"""
