"""What a data set teaches: distances, coverage, rotations; pictures from JSON alone."""
