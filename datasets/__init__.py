"""Benchmarks as shards of images and masks. Knows numpy, OpenCV, pyarrow and albumentations; never torch or ray."""
