"""Every threshold of the spectra.

Each entry says its unit, what it decides, and where the number comes from; "chosen" where nothing was measured. "Ulps" are
units in the last place, multiples of a dtype's epsilon, of the largest |eigenvalue| unless an entry says otherwise. Depends on
nothing. Must never hold a number that a caller can set, except as its default.
"""

# --- which method (eigen.py) ---

# Rows up to which the dense matrix is decomposed. It answers for certain, in the time of a few hundred products. Chosen.
DENSE_ROWS = 1000

# Part of all eigenpairs. If more are wanted, the dense matrix is decomposed whatever its size. Chosen: a subspace of several
# times that size is no cheaper.
DENSE_PART = 0.2

# Power of n. A matrix with more nonzeros is not worth a sparse factorization. Chosen.
SPARSE_POWER = 1.5

# Elements between the first nonzero of each row and the diagonal, squared and summed, after reordering: an upper estimate of
# the multiplications of a sparse factorization. Below it, a factorization is tried before products. It is about ten seconds of
# SuperLU on one core. Chosen.
CHEAP_PROFILE = 1e10

# Rows up to which a dense matrix is factorized if products do not converge: 40 s on two cores. Chosen.
FACTORIZED_ROWS = 15_000

# Bytes for each element of a dense matrix: for a Cholesky factorization in float32 (precondition.py), and for one by Bunch and
# Kaufman in float64 (factors.py), with the copies that both make.
BYTES_OF_CHOLESKY, BYTES_OF_LDL = 24, 32

# Part of the largest |entry|: the first shift of a Cholesky factorization in float32, above its rounding, and the number of
# attempts with shifts that grow by SHIFT_GROWTH. Chosen.
CHOLESKY_SHIFT, CHOLESKY_ATTEMPTS = 1e-5, 4

# Matrices that the decomposition of one holds at a time: LAPACK's divide and conquer has two as workspace, and lifting null
# directions two more.
COPIES_OF_DECOMPOSITION = 6

# --- block Davidson (davidson.py) ---

# Products for each eigenpair, and in any case, if `max_products` is None. Chosen: ten pairs of 19,652 atoms on a neighbour list
# take 4,700.
PRODUCTS_PER_PAIR, LEAST_PRODUCTS = 300, 6000

# Ulps. A pair has converged if its residual |A v - λ v| is below this many. Chosen: products of tiles have errors of up to a
# hundred.
RESIDUAL_ULPS = 1000

# Vectors that are multiplied at a time, and how many such blocks a basis holds beyond the pairs; half of them are kept at a
# restart. Without a preconditioner, the degree of the polynomial counts: ten pairs of 2,916 atoms on a neighbour list take
# 7,900 products with 6 blocks of 12, 2,200 with 20 blocks of 4 in half the time, and no less time with other sizes.
BLOCK, BLOCKS = 4, 20

# The same with a preconditioner, where a block is larger than the number of pairs by some guards. For twenty pairs of 2,483
# particles, this takes 4/5 of the time of 8 blocks of 22.
GUARDS, LARGEST_BLOCK, PRECONDITIONED_BLOCKS = 12, 32, 6

# Part of the gap between the last pair and the lowest Ritz value outside of what was found. Once the error of that is smaller,
# it is not going to fall below the last pair. And the blocks that a round takes in any case. Chosen.
CHECKED, LEAST_BLOCKS = 0.1, 6

# Rounds, in addition to the number of pairs, each of which looks for what the ones before missed. Chosen.
ROUNDS = 20

# Length that is left of a unit vector, orthogonalized for the second time, below which it depends on the basis. What is left of
# an independent one is close to 1.
INDEPENDENT = 0.5

# Ulps of the largest eigenvalue of a Gram matrix of unit vectors, below which a direction depends on the others. Chosen.
GRAM_ULPS = 100

# Ratio. The square of H - σ tells distances from σ apart only if they differ by more than this many times the largest residual.
# Chosen.
BLURRED = 1000

# --- factorizations (factors.py, shift_invert.py) ---

# Part of the largest |entry|: how close to an eigenvalue a shift may be, and by how much it moves away. Counts are right
# further away than rounding; this is half of the digits of what a pair has. Chosen.
SLACK = 1e-10
FIRST_SHIFT = 1e-6

# Factor by which a shift below the spectrum grows, and the number of attempts to factorize near a shift. Chosen.
SHIFT_GROWTH = 8.0
ATTEMPTS = 6

# Part of the longest vector. A vector depends on the ones before it if no more than this is left of it. Chosen.
DEPENDENT = 1e-8

# Steps that refine pairs, and ulps of the largest |entry| at which they stop. Chosen.
REFINEMENTS, REFINED_ULPS = 3, 30

# Part of |A| |x|. A factorization counts if it solves to this: then its inertia is that of a matrix as close as SLACK.
LARGEST_RESIDUAL = 1e-10

# --- null directions and rigid motions (problem.py, rigid.py) ---

# Ratio of the extent of particles across a line to that along it, below which they are on the line, and a rotation about it is
# no motion. Chosen: a relaxed linear molecule is straight to rounding, in float32 to 1e-6.
ON_A_LINE = 1e-4

# --- stationary points (stationary.py) ---

# Part of |x|: how far away a stationary point may be. As in `is_minimum`.
NEAR = 1e-3

# Eigenpairs that are computed first if the matrix is large, and the most while all of them are negative. Chosen.
PAIRS, MOST_PAIRS = 6, 48

# The largest |eigenvalue| of a large matrix, which only sets the scale: most products, and the tolerance. Chosen.
SIZE_PRODUCTS, SIZE_RTOL = 100, 1e-2

# --- densities and functions (density.py, functions.py) ---

# Random vectors and products for each, by default: those of "SLQ statistics", for which a density on 2,000 eigenvalues is
# within 2 % of its range.
SAMPLES, STEPS = 30, 60

# Rows up to which trace, determinant and inverse are exact from the dense matrix. Chosen: ten seconds on two cores.
EXACT_ROWS = 2000

# Ulps. An eigenvalue is not positive below this many: the rounding of a decomposition of thousands of rows. Chosen.
SINGULAR_ULPS = 100

# Residual of the solves for the diagonal of an inverse, relative to the right-hand side, and in ulps, which rounding leaves in
# float32: the larger counts. The error is this times the condition number, which the standard error does not show. Chosen.
SOLVE_RTOL, SOLVE_ULPS = 1e-6, 1000

# Columns of the identity that are solved with at a time, for the diagonal of an inverse. Chosen.
COLUMNS = 64
