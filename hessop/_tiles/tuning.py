"""Every threshold of the tiles engine: unit, meaning, and how it was found.

The benchmarks named here run on a CPU. "Chosen" means that no command in this repository shows the number to be the best;
measure before you rely on it. `tests/tiles/test_tuning.py` has a test on either side of each threshold.

Depends on nothing. Must never know the shapes of a user's function.
"""

from typing import NamedTuple

# --- how tiles are written, by platform ---

# Elements of the longest sum in low precision that is one product with ones on CPUs; longer sums are added up in chunks of at
# most this length. The longer the row, the more digits XLA's product loses. `benchmarks/products.py --parts digits` compares
# the errors with those of jit.
CHUNK_ELEMENTS = 320


class Kernel(NamedTuple):
    """How a loop is written as one kernel for a GPU: see `kernel.py`.

    Attributes:
        rows: entries of an output that one program computes, a power of two.
        columns: entries that it adds up at a time, a power of two.
        warps: warps of a program.
    """

    rows: int
    columns: int
    warps: int


class Form(NamedTuple):
    """How tiles are written for one kind of device.

    Attributes:
        planes: whether to split short axes into planes.
        products: whether to compute long sums as products with ones.
        plane_elements: most elements of a plane inside a tile.
        chunk_elements: elements of the longest sum in low precision that is not divided. Longer ones are added up in chunks of
            at most this length, with compensation for rounding; None to divide none.
        kernel: how loops are written as kernels; None for loops of XLA.
    """

    planes: bool
    products: bool
    plane_elements: int
    chunk_elements: int | None
    kernel: Kernel | None = None


# Arrays as they are: what no measurement has shown to be better otherwise.
ARRAYS = Form(planes=False, products=False, plane_elements=2**18, chunk_elements=None)

# The form on each platform; others have arrays. To try another form, put it here and call `jax.clear_caches()`.
#
# CPU: a plane of 2**18 elements takes 1 MB in float32 and 2 MB in float64, so that several stay in a cache; 2**19 was slower:
# `benchmarks/products.py --parts speed`.
#
# GPU: not measured. `benchmarks/gpu.py` times all forms and names the fastest.
FORMS = {
    "cpu": Form(planes=True, products=True, plane_elements=2**18, chunk_elements=CHUNK_ELEMENTS),
    "gpu": ARRAYS,
}

# Forms that could be the fastest on a GPU, by name: what `benchmarks/gpu.py` tries. Chosen.
GPU_FORMS = {
    "arrays": ARRAYS,
    "arrays, large tiles": ARRAYS._replace(plane_elements=2**22),
    "arrays, whole": ARRAYS._replace(plane_elements=2**26),
    "arrays, compensated": ARRAYS._replace(plane_elements=2**22, chunk_elements=640),
    "planes": ARRAYS._replace(planes=True, plane_elements=2**22),
    "planes, products": ARRAYS._replace(planes=True, products=True, plane_elements=2**22),
    "planes, compensated": ARRAYS._replace(planes=True, plane_elements=2**22, chunk_elements=640),
    "kernel 32 x 32": ARRAYS._replace(plane_elements=2**22, kernel=Kernel(32, 32, 2)),
    "kernel 32 x 128": ARRAYS._replace(plane_elements=2**22, kernel=Kernel(32, 128, 4)),
    "kernel 64 x 64": ARRAYS._replace(plane_elements=2**22, kernel=Kernel(64, 64, 4)),
    "kernel 128 x 32": ARRAYS._replace(plane_elements=2**22, kernel=Kernel(128, 32, 4)),
}

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

# Elements of which a chunk's length is a multiple: the widest vector of floats in a CPU. At N = 2483, chunks of 191, which
# divides N, spent a quarter of the time in scalar steps. `benchmarks/products.py --parts speed`.
VECTOR_ELEMENTS = 16

# Length of a chunk over the width of its accumulator, below which a sum is not chunked: each chunk reads and writes the
# accumulator. With 64 products at a time chunks took twice as long. `benchmarks/products.py --parts many`.
CHUNK_WIDTHS = 8
