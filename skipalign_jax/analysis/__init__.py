"""Measures of what a run trains, and their pictures, drawn from JSON alone."""
