"""Rates and thresholds of the routes: each with its unit, what it decides, and how it was found.

Prices in seconds are in `hessop._equations`, fitted by `benchmarks/prices.py`. A change here is justified by
`benchmarks/dense.py`, `products.py` and `first_call.py`. Must never contain code.
"""

# --- which route ---

# Number of calls that an executable is expected to serve, by default. Chosen: a minimisation or a short trajectory.
CALLS_EXPECTED = 100
# Ratio of work: all rows of the matrix from terms, some rows at a time, over all rows at once. Separate chunks share no work.
# Estimated for pair energies of particles in space.
ROW_RATE = 4
# An equation without a rule may take a budget divided by this number, but at least this many bytes. Chosen: several such
# results are alive at once.
WITHOUT_RULE_SHARE = 8
WITHOUT_RULE_LEAST_BYTES = 2**20

# --- rows in chunks ---

# Number of vectors of length n that each row of a chunk needs, and that all rows need together. Chosen above what the terms of
# any tested potential need.
VECTORS_PER_ROW = 64
# In budgets. A chunk is compiled only if the upper estimate from shapes is at most this much. XLA rarely fuses away more.
LARGEST_OVERESTIMATE = 8
# In budgets. A chunk that takes more than this is divided by its excess in one step rather than halved, which saves
# compilations.
LEAP_FROM = 4

# --- products ---

# Factor by which terms must be cheaper than products that store nothing. Chosen, because prices are crude.
MARGIN_OF_TERMS = 1.25
# In budgets. Terms whose intermediates add up to more than this are not tried.
BUDGETS_TO_MAKE_TERMS = 8
# Bytes of intermediates from which products are evaluated by tiles whatever that takes to compile. Chosen: a tenth of what a
# process with JAX takes anyway.
LEAST_BYTES_TO_SAVE = 2**25
# Length of the sums of a matrix product above which recomputing it costs more than reading it. Estimated.
LONGEST_RECOMPUTED_SUM = 64

# --- sparse matrices ---

# Traces of the terms of a function that compares lists of lists; beyond, all pairs are compared. Chosen: more than the rounds
# of message passing that have been tried.
MOST_TRACES = 6
# Blocks of a list of matches for each entry of a list, above which they are evaluated by tiles and not stored. Chosen: blocks
# of 3 x 3 take 75 MB in float64.
STORED_BLOCKS = 2**20
# In square roots of the rounding unit, relative to the largest sum of absolute values. A product with the nonzeros that a
# coloring gives may differ by this much from one with the Hessian. Chosen: rounding gives far less, a missed nonzero far more.
COLORING_TOLERANCE = 1.0
# Bytes for the place of each block of the terms: two numbers of 8 bytes while places are sorted, two of 4 that are kept.
BYTES_PER_BLOCK = 24
# Bytes for the places of each nonzero, besides two values: its row, its column, and the number of its transpose.
BYTES_PER_NONZERO = 12
