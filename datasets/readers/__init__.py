"""A file per benchmark: from the original folders to samples."""
