"""What training and validation see of a row where the task is another than segmentation; a file per task."""
