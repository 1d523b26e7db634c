"""What is in shards that are there: indices, checks, counts and pictures of the counts."""
