"""Evaluations of models on long inputs: tasks, protocols and results."""
