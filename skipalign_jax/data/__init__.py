"""Chat files to batches: sources → chat → prepare → packing → pipeline.

Nothing here imports jax: Grain's worker processes stay plain numpy.
"""
