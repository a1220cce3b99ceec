"""`jaxleak train`: a federation, its training, and what it leaves: curves, leaks, privacy spent, a report."""
