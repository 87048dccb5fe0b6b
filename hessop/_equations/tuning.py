"""Rates and thresholds of the cost model: every number in `cost` that was measured or chosen.

"Elements" is the unit of work: the time in which an elementwise pass writes one element of an array that does not fit in a
cache. Times are CPU seconds of one core, so only ratios carry over to another machine. A comment names the command that
measures a number again; "no script" means that it was found by hand.

Depends on nothing. Must never compute.
"""

from typing import NamedTuple

# --- Running ---


class Rates(NamedTuple):
    """How fast one kind of device is.

    Attributes:
        seconds_per_element: for one element of work.
        multiply_adds_per_element: multiply-adds of a matrix product that take as long as one element: a product is bound by
            arithmetic, a pass by memory.
        reads_per_element: entries of a matrix that a matrix-vector product reads in the time of one element: it is bound by
            memory.
        elements_per_scatter: elements for one gathered or scattered entry.
        tile_speedup: how many times faster a pass is inside a tile.
    """

    seconds_per_element: float
    multiply_adds_per_element: float
    reads_per_element: float
    elements_per_scatter: float
    tile_speedup: float


# The rates of each platform; "gpu" stands for all that are not named.
#
# CPU, one core: seconds fitted by `python benchmarks/prices.py`, 8e-11 in a cache and 8e-10 out of it. The next three were
# measured once; no script. Inside a tile, in a cache, `python benchmarks/products.py` shows 7 to 20 times for whole functions;
# no route is chosen for more than it surely gains.
#
# GPU: not measured, but from the data sheet of an H100 in float32: 3.35 TB/s, of which an element takes 8 bytes and an entry
# that is read 4, and 67 TFLOP/s. Tiles gain nothing, as XLA's kernels for GPUs do not store what they fuse. `benchmarks/gpu.py`
# prints what these should be.
RATES = {
    "cpu": Rates(2.6e-10, 8, 4, 4, 6),
    "gpu": Rates(2.4e-12, 80, 2, 4, 1),
}

# Where products run at once and a value of all of them has more bytes than this, no cache holds it, and each element takes this
# many times as long. Measured on the functions of `python benchmarks/first_call.py` at their middle sizes: three-body angles
# 2.8, bond order 1.6, force field 1.7, embedded atoms 2 to 4.
UNCACHED_BYTES = 2**25
UNCACHED_RATIO = 3
# Elements for writing one element by an operation that is fused with reading its inputs. Not measured: chosen.
FUSED_WRITE = 0.05
# Elements for reading one element in a sum over a short axis, which is not fused well. Not measured: chosen.
FUSED_SUM = 2.0

# --- Compiling ---

# Seconds that XLA takes to compile an executable, and for each of its equations by what the equation becomes. Fitted by
# `python benchmarks/prices.py` to 35 functions at two sizes: in four cases of five the prediction is 0.64 to 1.27 times the
# measured time.
COMPILE_SECONDS = {
    "executable": 0.056,
    "equation": 1.1e-3,  # part of a fusion
    "move": 0.0,  # nothing but indices in the kernel that reads it
    "product": 7.3e-3,  # a call of a library
    "sum": 1.9e-2,  # a loop of its own, as are the next two
    "scatter": 2.3e-2,
    "loop": 2.3e-2,
}
# How many times longer equations take to trace and compile as tiles than on whole arrays. No script.
TILES_COMPILE_RATIO = 2.2
# Seconds to compile one result of the structure engine, which is two or three equations; tracing it takes a tenth of that.
# No script.
RESULT_COMPILE_SECONDS = 8e-3

# --- When a slower compilation pays ---

# A first call may take this many times as long as that of the alternative, and this many seconds more. Beyond that the slower
# compilation must save its extra seconds this many times over. Not measured: chosen, because the first call is what a user
# meets first; `python benchmarks/first_call.py` shows its effect.
FIRST_CALL_RATIO = 1.5
FIRST_CALL_EXTRA_SECONDS = 0.3
FIRST_CALL_PAYBACK = 8
# Structure is not even traced unless all calls could save this part of the compile time of the alternative. Not measured:
# chosen.
LEAST_SAVING = 0.25
# (seconds of a call, LLVM's optimization level below that). A call below 30 microseconds takes longer to dispatch than to run.
# One below some milliseconds runs as fast at the first level as at the last, which takes a tenth longer to compile. Measured
# with 14 functions of `python benchmarks/first_call.py`.
LLVM_LEVELS = ((3e-5, 0), (3e-3, 1))
