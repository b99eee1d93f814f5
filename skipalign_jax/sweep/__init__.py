"""Many trainings and their evaluations from one table of runs."""
