"""Thresholds of the pictures: all chosen by looking at them.

Depends on nothing. Must never hold what a user can set.
"""

# Ratio of the largest to the smallest |eigenvalue| beyond which the axis is logarithmic; it is linear up to the smallest ones,
# as a percentage of all, but not below this part of the largest.
LOGARITHMIC = 100
LINEAR_PERCENT, LEAST_EIGENVALUE = 10, 1e-12

# Parts of the largest value below which a density and an entry of a matrix are not told apart.
LEAST_DENSITY, LEAST_ENTRY = 1e-6, 1e-8

# Standard deviations that are shown of a Gaussian's tail, and the margin beyond it as a part of the range.
TAILS, MARGIN = 5, 0.02

# Points of a curve that the user does not set.
POINTS = 2000

# Rows of a matrix that are computed at a time, and the share of nonzeros up to which these are read instead of all rows.
ROWS, SPARSE_PART = 256, 0.05
