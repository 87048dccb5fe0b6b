"""Thresholds of programs: each with its unit, what it decides, and how it was found. Must never hold code."""

# An equation that costs nothing inside a fusion is repeated in the linear part, if its result has this many times the elements
# of what it is computed from. Below that, storing the result reads no more. Chosen.
FREE_RATIO = 4

# --- what is kept ---

# Programs that stay alive without an operator or a function that holds them, and programs kept for each function. Chosen: a
# lambda in a loop finds its program again.
PROGRAMS_KEPT = 64
# Arrays that functions captured from numpy: bytes of those whose copies on the device are kept, and how many. Chosen: such
# arrays are tables of parameters.
COPIED_BYTES = 2**14
COPIES_KEPT = 256

# --- checks for NaN and infinity ---

# Entries of a result that are all checked. Of a larger one, the diagonal and rows at even distances are, as many entries in
# all: to read a large matrix takes up to half as long as to compute it (benchmarks/trust.py), and NaN nearly always shows on
# the diagonal.
ENTRIES_CHECKED = 2**20
# Entries up to which numpy checks on any device: to compile a sum takes longer.
ENTRIES_CHECKED_ON_HOST = 2**16
