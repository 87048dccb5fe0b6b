"""Every rate and threshold of the solvers.

Each entry says its unit, what it decides, and where the number comes from: a paper, an argument, or "chosen" where nothing
was measured. "Ulps" are units in the last place, multiples of the working dtype's epsilon. No threshold is absolute: each is
relative to a norm that its entry names, so scaling a problem never changes which way a solver goes.

Where half of the digits decide, the code says `sqrt(eps)`: a product of two quantities, each known to eps, cannot show more.
`tests/krylov/test_tuning.py` has a case on either side of the thresholds that are cheap to show.

Depends on nothing. Must never hold a number of a nonlinear method: those are in `hessop/optax/_tuning.py`.
"""

# --- every iteration ---

# Products per unknown before a solver gives up, if `max_steps` is None. Exact arithmetic needs one. With rounding, 12 unknowns
# at a condition of 1e6 take up to 26 (tests/krylov/test_properties.py). The default of `lineax.CG` too.
STEPS_PER_UNKNOWN = 10

# Part of the residual at the last recomputation that the next one must be below. Otherwise rounding, not the iteration, decides
# how large it is. Chosen.
PROGRESS = 0.5

# --- conjugate gradients (steihaug.py) ---

# Ulps. p.Ap is zero below this many of |p| |Ap| (the rounding of the inner product) or of |A| |p|^2 (the rounding of the
# product). Chosen.
FLAT_ULPS = 4

# Part of the tolerance. Once rounding may have moved the recurred residual by more than this, convergence is claimed only after
# the residual has been recomputed. Chosen.
CG_DRIFT = 0.25

# --- MINRES (paige_saunders.py) ---

# Ulps of the operator's norm, below which a Lanczos vector is zero. Chosen.
ZERO_ULPS = 10

# Part of the recurred residual. Once rounding may have moved it by more than this, it is recomputed. Chosen.
MINRES_DRIFT = 0.1

# Recomputations in a row without `PROGRESS`, after which MINRES gives up. Chosen.
MAX_STALLS = 2

# --- orthogonal bases (lanczos.py, subspace.py) ---

# Ulps of the operator's norm. A vector depends on the basis if no more than this is left of it. Chosen.
DEPENDENT_ULPS = 10

# Passes of Gram-Schmidt. One leaves the rounding of what it subtracted; two are enough: Parlett, The Symmetric Eigenvalue
# Problem (1998), section 6.9, doi:10.1137/1.9781611971163.
ORTHOGONALIZATIONS = 2

# Probability that a bound on the lowest eigenvalue from a random start is wrong. Chosen; the bound grows with the
# square of its logarithm.
FAILURE = 1e-3

# --- the exact subproblem (subspace.py, boundary.py) ---

# Products, if `max_steps` is None; two more vectors are stored. Chosen.
EXACT_STEPS = 100

# Solutions of the small problem within one solve, at even intervals: its size is fixed at compile time, so an early one costs
# as much as the last. Chosen.
SOLVES = 32

# Ulps of the largest entry (of T), or of |A|. An eigenvalue is negative below minus this many. Chosen.
NEGATIVE_ULPS = 10

# Ulps of |c|. A component of c along an eigenvector is zero below this many: in the hard case it is rounding, and would be
# divided by the rounding of a gap. Chosen.
NOISE_ULPS = 10

# Ulps of the radius. The secular equation is solved once | |z| - radius | is below this many, and a step this close to the
# boundary is on it. Chosen.
BOUNDARY_ULPS = 4

# Steps of Newton's method on the secular equation. It takes about five; this bounds the loop. Chosen.
SECULAR_STEPS = 60

# Factor by which the largest radius stays below the square root of the largest number: its square, and small multiples of that,
# must be finite. Chosen.
RADIUS_HEADROOM = 16
