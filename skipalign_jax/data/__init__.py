"""Chats and texts to batches: sources → chat, text → prepare → packing → pipeline.

Nothing here imports jax: Grain's worker processes stay plain numpy.
"""
