"""What is counted, on which rows, and how sure a score is."""
