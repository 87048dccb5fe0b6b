"""Every rate and threshold of the optax transformations.

Each entry says its unit, what it decides, and where the number comes from: a paper, a benchmark, or "chosen" where nothing was
measured. "Ulps" are units in the last place, multiples of a dtype's epsilon. All are ratios, so the units of the objective and
of the parameters do not matter. Depends on nothing. Must never hold a number of the linear solvers.
"""

# --- the tolerance of a linear solve (_model.py) ---

# Eisenstat and Walker (1996), doi:10.1137/0917003, choice 2, with their factor and exponent:
# rtol = FORCING_FACTOR (|g| / |g of the last step|)^FORCING_EXPONENT, at most LOOSEST_RTOL, which is also the first.
# An exponent of 2 ends in steps that solve to 1e-13 although 1e-6 was asked for. They start at 0.9, for Jacobians that are
# expensive to multiply by. This exponent, the start at 0.3 and bounds on the steps together save a tenth of the products on 16
# problems of `python benchmarks/minimise.py`.
FORCING_FACTOR = 0.9
FORCING_EXPONENT = (1 + 5**0.5) / 2
LOOSEST_RTOL = 0.3

# --- newton_cg ---

# Lengths of the last step. With a line search, a step along curvature that is not positive starts at no more than this. In the
# geometric mean over a dozen starts, 60 ions then take 51 evaluations instead of 90, and a fluid of 120 particles 155 instead
# of 405, with fewer products too. For a cluster of 55, which meets little of such curvature, it makes no difference.
LEAP = 4.0

# Evaluations of the line search for one step, as in `optax.lbfgs`.
LINESEARCH_STEPS = 20

# --- newton_trust_region ---

# Ratios of the actual decrease to that of the model: a step is taken from ACCEPTED, the radius shrinks below POOR, and grows
# from GOOD. POOR, GOOD and the factors of the radius below are those of TRON: Lin and Moré, Newton's method for large
# bound-constrained optimization problems (1999), doi:10.1137/S1052623498345075, section 4. ACCEPTED was chosen.
ACCEPTED, POOR, GOOD = 0.1, 0.25, 0.75

# Factors of the radius: the smallest and the largest after a poor step, and the largest after a good one. TRON's.
SHRINK, HALVE, GROW = 0.25, 0.5, 4

# The model is right at the boundary if the ratio differs from one by no more than EXACT, for a step longer than AT_BOUNDARY
# radii. The radius then grows at least by EXACT_GROW. Chosen.
EXACT, AT_BOUNDARY, EXACT_GROW = 0.1, 0.99, 2

# Ulps of the objective. If the model promises a smaller decrease than BLURRED_ULPS, and the value has not risen by more than
# NOISE_ULPS, the gradients at both ends measure the decrease instead of the values. Chosen.
BLURRED_ULPS = 1000
NOISE_ULPS = 10

# --- saddle_search ---

# Root mean squares of x: the first trust radius, and the displacement from a saddle point down to a minimum. With 0.05, all of
# six searches of 38 particles that start next to a minimum end after 25 to 64 steps; with 0.1, two of them do.
SADDLE_RADIUS = 0.05
DISPLACEMENT = 0.02

# Part of the gradient, or of its predicted change if that is larger: how wrong the predicted gradient may be for the radius to
# grow, from where it shrinks, and from where a step is refused. Chosen.
GOOD_PREDICTION, POOR_PREDICTION, WORST_PREDICTION = 0.3, 0.8, 1.5

# Factor of the length of a step that the model predicted well: the next radius. Chosen.
SADDLE_GROW = 2.0

# Ulps of the root mean square of x: a trust radius below which no step moves anything. Chosen.
LEAST_RADIUS = 10

# How often the curvature of the mode may become positive again, and by what factor the gradient may exceed the first one (or
# the largest curvature times the first radius), before the search starts again near the minimum; the number of such starts,
# and how far away from the minimum they are, in first radii. Chosen: on Müller and Brown's surface, a search of three from
# random points runs up an outer slope.
MOST_CROSSINGS, RUNAWAY, MOST_ATTEMPTS, DISPLACED = 6, 10.0, 12, 3.0

# Attempts that the largest number of steps is enough for. Chosen.
LEAST_ATTEMPTS = 3

# Halvings of an interval of the size of the gradient, down to rounding.
BISECTIONS = 100

# The lowest mode by products: most products, vectors that are kept, and the residual relative to the largest |eigenvalue| at
# which it is good enough to go up along; and most products for a step. The search starts from the last mode, so few products
# are enough: seven particles take 380 evaluations in the median, and 1,900 with 30 products and a residual of 1e-3.
MIN_MODE_PRODUCTS, MIN_MODE_BASIS, MIN_MODE_RTOL, MIN_MODE_CG = 8, 8, 0.05, 100
