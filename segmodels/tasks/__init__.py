"""Models of tasks other than segmentation, with their losses; a file per task."""
