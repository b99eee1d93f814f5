"""What a model can do with long inputs: tasks, their protocols, their results."""
