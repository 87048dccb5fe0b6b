"""Every rate and threshold of the structure engine.

Each entry says its unit, what it decides, and how the number was found: the command that measured it, or "chosen" where
nobody did. None of them can change a result beyond rounding: they choose between exact forms of the same sum.
`tests/structure/test_tuning.py` has a case on either side of each.

Depends on nothing. Must never hold a number of another engine: prices are in `hessop._equations.cost`.
"""

# --- short axes ---

# Positions. An axis up to this long is written out as planes, one array for each position: XLA's CPU backend spends more on a
# loop over an axis of length 3 than on the arithmetic in it. Planes of coordinates, when they were introduced, made the dense
# matrix of 2483 particles four times faster (N = 2483 in `python benchmarks/dense.py`). The bound itself was chosen: it covers
# coordinates (3) and quaternions (4). It also bounds the axes along which like terms are stacked (`restack`), those along which
# a factor is repeated (`moves.fuse`), and those whose diagonal is a mask rather than a scatter (`assemble`).
SHORT_AXIS = 4

# Elements of a block of two short axes. Each entry of a list (bonds, neighbours) may grow into such a block: there are no more
# blocks than entries, whereas products of all pairs may be far larger than anything stored. Chosen.
BLOCK_ELEMENTS = SHORT_AXIS**2

# Planes. A sum is written out over its short ids only into this many. Chosen: two short axes.
MAX_PLANES = SHORT_AXIS**2
# Elements of a plane, for each plane. Smaller planes cost more in kernels than they save in loops. Chosen.
PLANE_ELEMENTS_PER_PLANE = 16

# Combinations of short ids that a term is assembled for one after the other, where the remaining ids are then evenly spaced.
# Chosen: three axes of coordinates.
MAX_UNROLLED = 3**3

# --- multiplying out ---

# Elements that a product may be multiplied out to although it grows: min(n * n, 16 * (stored + n) + 2**16), for a matrix with
# n rows and residuals of `stored` elements. A matrix is made where a matrix is wanted, unless it is far larger than its inputs;
# the constant is for small functions, whose matrix is cheap in any case. Chosen.
EAGER_PER_STORED = 16
EAGER_LEAST_ELEMENTS = 2**16

# Factors of a product, and products of a term, beyond which they are multiplied or added: the work on them in each later step
# costs more than it saves. Chosen.
MAX_FACTORS = 5
MAX_PRODUCTS = 6

# Factors up to which all orders of a contraction are compared; beyond, the order is greedy. The number of orders grows
# factorially. Chosen: for one product of factors (`factors.py`), and with the vector among the factors (`products.py`).
MAX_OPTIMAL_FACTORS = 5
MAX_OPTIMAL_FACTORS_AND_VECTOR = 6

# --- terms ---

# Terms of a tangent, beyond which it becomes one term per leaf of x: code that unrolls a loop would otherwise multiply its
# terms at each step. Chosen: pair energies have 4 terms, neighbour lists 8 (tests/structure/energies.py).
MAX_TERMS = 32
# Elements of the dense tangent for each entry of the terms, up to which those many terms become a dense array rather than a
# list of entries with their positions. Chosen: an entry on the list needs its value and a position on each axis.
DENSE_ELEMENTS_PER_ENTRY = 4

# --- assembly ---

# Elements of an update, up to which it is copied to be scattered together with others: that saves a kernel, which takes XLA
# 0.02 s to compile (`python benchmarks/prices.py`, "scatter"). With this and short diagonals as masks, first calls of a dozen
# CUTEst problems at n = 1000 went from 2-4.6 to 0.7-2.3 times those of `jit(jax.hessian)` (`python benchmarks/first_call.py`).
# The bound was chosen.
JOINED_UPDATE_ELEMENTS = 2**17

# --- products with many vectors ---

# Elements of the matrix for each element of its largest factor, up to which a term becomes a matrix before it meets the
# vectors: such a matrix is about as large as its factors. Chosen.
MATRIX_ELEMENTS_PER_FACTOR_ELEMENT = SHORT_AXIS**2

# --- indices ---

# Elements of an index that is known while a function is traced. Chosen: a corner has one for each axis.
KNOWN_ELEMENTS = 16

# --- lists ---

# Places for each entry of a list. Entries are added up at their places if there are at most this many times as many places as
# entries. Chosen: a list of torsions along a chain is a little shorter than the chain.
PLACES_PER_ENTRY = 2

# --- joins ---

# Entries of a list for each entry that may be at one position, from which two lists are compared only where they agree: the
# list is sorted for that, and masked where fewer entries agree. Chosen.
LIST_ENTRIES_PER_MATCH = 4
