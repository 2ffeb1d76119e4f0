"""Views of a row for tasks other than segmentation, and how a block of them travels. Never torch."""
