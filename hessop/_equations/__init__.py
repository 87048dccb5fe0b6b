"""Jaxprs as flat lists of equations, and what they cost."""
