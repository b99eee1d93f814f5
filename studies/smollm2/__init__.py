"""A real model: SmolLM2-135M-Instruct fine-tuned in many ways, at two windows."""
