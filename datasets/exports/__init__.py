"""Labels as annotation tools export them: a reader per format, one table of all, one way from outlines to masks."""
