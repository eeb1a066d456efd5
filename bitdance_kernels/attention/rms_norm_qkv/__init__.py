"""RMSNorm, query, key and value projection, rotation, and the cache."""
