"""Thresholds of programs: each with its unit, what it decides, and how it was found. Must never contain code."""

# Ratio of elements. The linear part repeats an equation that costs nothing inside a fusion if its result has at least this
# many times the elements of its operands. Below that, reading a stored result costs no more. Chosen.
FREE_RATIO = 4

# --- caches ---

# Number of programs kept alive without an operator or a function, and number kept for each function. Chosen, so that a lambda
# in a loop finds its program again.
PROGRAMS_KEPT = 64
# Device copies of captured numpy arrays are kept up to this many bytes each, and this many in number. Chosen for tables of
# parameters.
COPIED_BYTES = 2**14
COPIES_KEPT = 256

# --- checks for NaN and infinity ---

# Number of entries up to which all entries are checked. In a larger result, the diagonal and evenly spaced rows are, this many
# entries in all: reading a large matrix takes up to half as long as computing it (benchmarks/trust.py), and NaN nearly always
# shows on the diagonal.
ENTRIES_CHECKED = 2**20
# Number of entries up to which numpy does the check, on any device, because compiling a sum takes longer.
ENTRIES_CHECKED_ON_HOST = 2**16
