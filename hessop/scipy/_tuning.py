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
