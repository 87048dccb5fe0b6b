"""Every threshold of the tiles engine: unit, meaning, and how it was found.

The benchmarks named here run on a CPU. "Chosen" means that no command in this repository shows the number to be the best;
measure before you rely on it. `tests/tiles/test_tuning.py` has a test on either side of each threshold.

Depends on nothing. Must never know the shapes of a user's function.
"""

# --- planes ---

# Positions. An axis of at most this length is *short*: it is split into separate planes. A longer axis is *long*: it lies in
# a plane and can be tiled. Chosen, with a margin over the 3 components of a vector.
SHORT_AXIS = 8

# Planes of one value. Further short axes stay inside the planes: each plane has to be traced and compiled. Chosen, so that
# an N x N array of 8 x 8 matrices is still split.
MOST_PLANES = 64

# Factors of a product of planes that is recognised in any order; see `Options.regroup`. Chosen.
MOST_FACTORS = 12

# Products of two planes that a dot_general over short axes is written out as; with more, it stays a dot_general. Chosen, so
# that the product of N x N arrays of 4 x 4 matrices is written out.
MOST_PRODUCTS = 64

# --- what is stored ---

# Elements of a plane above which a value is virtual: the default of `Options.threshold_elements`. Chosen.
THRESHOLD_ELEMENTS = 2**13

# Elements of a plane inside a tile: the default of `Options.plane_elements`. They take 1 MB in float32 and 2 MB in float64,
# so that several stay in a CPU's cache. 2**19 was slower: `benchmarks/products.py --parts speed`.
PLANE_ELEMENTS = 2**18

# Elements of a product of a virtual matrix and a stored factor, over those of the factor, up to which the product is stored:
# it is expensive to recompute, and not much larger than what is stored anyway. Chosen.
PRODUCT_ROOM = 4

# Planes that a tile holds at a time, in the estimate of stored bytes. Chosen: a pair potential needs some dozens.
PLANES_AT_ONCE = 64

# Bytes of an element in that estimate: a float64.
ELEMENT_BYTES = 8

# --- what is computed once ---

# Cheap operations behind a value that several kernels read, from which on it is computed once per tile. Chosen: recomputing
# fewer costs no more than the division that prevents it.
SHARED_OPERATIONS = 4

# Cheap operations behind a value, from which on it is stored if a much larger stored value is computed from it. Chosen, below
# the 64 multiplications of the switching function that this is for.
STORED_OPERATIONS = 40

# Elements of that larger value over those of this one, from which on this one is stored: its memory is then the smaller cost.
# Chosen.
STORED_ROOM = 4

# --- loops ---

# Votes of a reduction for an axis of its output, along which tiles are written; an axis along which tiles are added up has
# one vote. Nothing to measure: it decides between equals only.
TILED_OUTPUT_VOTE = 1.01

# Python frames between one virtual value and the next in a chain, at most. Counted in `Reader.part`.
FRAMES_PER_VALUE = 8

# --- sums ---

# Bits of the widest floating-point dtype that counts as low precision, where a long sum loses digits that users miss: adding
# thousands of values one by one loses two, of the seven of float32 or the sixteen of float64.
# `benchmarks/products.py --parts digits`.
LOW_PRECISION_BITS = 32

# Elements of a plane above which a sum along one axis is a product with ones. XLA's CPU backend is bad at fusing several sums
# of one expression, but compiles a product more slowly than a sum. Not repeated by any command here.
SMALL_SUM_ELEMENTS = 2**14

# Elements of the longest sum in low precision that is one product with ones; longer sums are added up in chunks of at most
# this length. The longer the row, the more digits XLA's product loses. `benchmarks/products.py --parts digits` compares the
# errors with those of jit.
CHUNK_ELEMENTS = 320

# Elements of which a chunk's length is a multiple: the widest vector of floats in a CPU. At N = 2483, chunks of 191, which
# divides N, spent a quarter of the time in scalar steps. `benchmarks/products.py --parts speed`.
VECTOR_ELEMENTS = 16

# Length of a chunk over the width of its accumulator, below which a sum is not chunked: each chunk reads and writes the
# accumulator. With 64 products at a time chunks took twice as long. `benchmarks/products.py --parts many`.
CHUNK_WIDTHS = 8
