"""Thresholds of the bridge to scipy.

Each entry says its unit, what it decides, and how the number was found. Depends on nothing.
"""

# Ratio. A pivot on the diagonal is taken if it is at least this part of the largest entry of its column. A larger ratio
# exchanges rows more often, which is more accurate and fills more. SuperLU's users' guide suggests a small one for matrices
# that are nearly symmetric. Chosen.
PIVOT_THRESHOLD = 0.01

# Ratio. Largest residual of a solution, relative to |A| |x| + |b|, after one refinement; beyond it, the matrix is factorized
# with partial pivoting, and then called singular. Chosen: half of the digits of float64.
LARGEST_RESIDUAL = 1e-8

# Ratio. First shift that is tried for a matrix that is not positive definite, relative to its largest entry, and the factor by
# which it grows. Nocedal and Wright (2006) propose 1e-3 and at least 2; a larger factor saves factorizations.
FIRST_SHIFT = 1e-3
SHIFT_GROWTH = 4.0

# Defaults of incomplete factors: scipy's.
DROP_TOLERANCE = 1e-4
FILL = 10.0
