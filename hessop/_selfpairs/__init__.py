"""Pairs of a particle with itself: where they reach a singular primitive, and a rewrite that makes them constants."""
