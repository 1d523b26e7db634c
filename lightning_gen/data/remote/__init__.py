"""Reading over a network: addresses, limits, retries, ranges, and a cache on the disk."""
