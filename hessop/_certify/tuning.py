"""Every threshold of `is_minimum`, `inertia_shift` and `check_hessian`.

Each entry says its unit, what it decides, and where the number comes from; "chosen" where nothing was measured. "Ulps" are
units in the last place, multiples of a dtype's epsilon. Depends on numpy only. Must never hold a number that a caller can set,
except as its default.
"""

import numpy as np

# --- is_minimum and inertia_shift ---

# Rows up to which the dense matrix is decomposed, if `max_products` is None. It answers for certain, in the time of a few
# hundred products. Chosen.
DENSE_ROWS = 1000

# Products with larger Hessians, if `max_products` is None. Chosen: the uncertainty falls as its inverse square.
PRODUCTS = 100

# Part of |x|. A stationary point is this point if it is no further away, if `xtol` is None. Chosen.
NEAR = 1e-3

# Ulps of the largest |eigenvalue|: the uncertainty of an eigenvalue of the dense matrix. Chosen.
EIGENVALUE_ULPS = 10

# Part of the length of a unit vector. A direction is a rigid motion if less than this is something else. Chosen loosely:
# a Ritz vector has half of the digits of its eigenvalue.
RIGID = 1e-2

# --- check_hessian ---

# Steps h of the Taylor tests, relative to the size of x, from large to small: for float32 (and shorter) and for float64. The
# largest must stay where fn is smooth, the smallest above rounding. Chosen.
STEPS_SINGLE = 2.0 ** -np.arange(4, 11)
STEPS_DOUBLE = 2.0 ** -np.arange(6, 21)

# Exponent of h. The error of a first-order expansion falls as h^2 if the derivative is right, as h if it is not. Chosen.
LEAST_SLOPE = 1.7

# Units of rounding above which an error says something about the derivative. Chosen.
ABOVE_ROUNDING = 50

# Errors above rounding from which a slope can be read, and slopes (at the smallest steps) of which the median is taken. Chosen.
LEAST_ERRORS = 3
LAST_SLOPES = 4
