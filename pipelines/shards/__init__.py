"""From a release to shards, and what shards hold."""
