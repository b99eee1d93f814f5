"""What `python -m skipalign_jax.plan` counts, compiles and prints."""
