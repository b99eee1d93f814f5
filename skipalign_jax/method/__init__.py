"""The papers' equations: positions, and windows of a short context."""
