"""Foundations: errors, arguments, pytrees as flat vectors, bytes, progress, JAX's settings."""
