"""Which rows a worker sees when, and their way to a batch."""
