"""Iterative solvers for symmetric operators that may be indefinite, for `lineax.linear_solve`: see README.md."""
