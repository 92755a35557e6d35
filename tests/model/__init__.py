"""A plain-Python model of the queue protocol, searched as a whole, and held to the real scripts."""
