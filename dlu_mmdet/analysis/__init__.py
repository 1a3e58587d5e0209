"""Analysis of detectors: what they found, what they cost, how they compare."""
