"""A run: its step, state, folder and records."""
