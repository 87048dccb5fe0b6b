"""Rates and thresholds of the routes: each with its unit, what it decides, and how it was found.

Prices in seconds are in `hessop._equations`, fitted by `benchmarks/prices.py`. A change here is justified by
`benchmarks/dense.py`, `products.py` and `first_call.py`. Must never hold code.
"""

# --- which route ---

# Calls that an executable is expected to serve, unless the user says otherwise. Chosen: a minimisation or a short trajectory.
CALLS_EXPECTED = 100
# Work of all rows of the matrix from terms, some rows at a time, over that of all at once: a row that is computed alone shares
# nothing with the others. Estimated for pair energies of particles in space.
ROW_RATE = 4
# Bytes that an equation without a rule may take: at least, and as a share of the budget. Chosen: several such are alive at
# once.
WITHOUT_RULE_SHARE = 8
WITHOUT_RULE_LEAST_BYTES = 2**20

# --- rows in chunks ---

# Vectors of length n that each row of a chunk needs, and sums that all rows need. Chosen: more than the terms of any potential
# that was tried.
VECTORS_PER_ROW = 64
# A chunk is worth compiling if the upper estimate from shapes is at most this many budgets. XLA seldom fuses away more.
LARGEST_OVERESTIMATE = 8
# A chunk that took this many budgets is divided in one step by its excess instead of halved, which saves compilations.
LEAP_FROM = 4

# --- products ---

# Terms must be cheaper by this factor where products store nothing without them. Chosen: prices are crude.
MARGIN_OF_TERMS = 1.25
# Terms that take this many budgets to make, all intermediates added up, are not tried.
BUDGETS_TO_MAKE_TERMS = 8
# Length of the sums of a matrix product above which to recompute it costs more than to read it. Estimated.
LONGEST_RECOMPUTED_SUM = 64

# --- calls ---

# (seconds of a call, LLVM's optimisation level below that). A call below 30 microseconds takes longer to dispatch than to run.
# One below some milliseconds runs as fast at the first level as at the last, which takes a tenth longer to compile. Measured
# with 14 functions of benchmarks/first_call.py.
LLVM_LEVELS = ((3e-5, 0), (3e-3, 1))
