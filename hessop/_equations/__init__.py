"""Jaxprs as flat lists of equations: what primitives are, how equations run, and what they cost."""
