"""Pairs of a particle with itself: where they reach a singular primitive, and how they become the constants they are."""
