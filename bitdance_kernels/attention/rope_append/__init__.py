"""rope_append: rotation of new queries and keys, and their way into the cache."""
