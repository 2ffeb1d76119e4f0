"""A recipe from its checks to its table, in the user's process."""
