"""Iterative solvers for symmetric, possibly indefinite operators, as lineax takes them: one algorithm a file."""
