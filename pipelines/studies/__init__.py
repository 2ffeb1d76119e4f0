"""Many trials that answer one question: a study from its checks to its table."""
