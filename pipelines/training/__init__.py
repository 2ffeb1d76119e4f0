"""One stage on one worker."""
