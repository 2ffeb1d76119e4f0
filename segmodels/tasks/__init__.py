"""Tasks besides segmentation: a model with its losses in a file each."""
