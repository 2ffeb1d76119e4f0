"""A run's folder, and who is told of what happens in it."""
