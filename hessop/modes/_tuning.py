"""Every threshold of normal modes and phonons. Depends on nothing."""

# Part of |D v| of a random unit vector v. If |D n| of a rigid motion is larger, it is none: the point is not stationary, or the
# energy depends on the orientation, as in a periodic box. Chosen: a cluster that was relaxed to 1e-6 stays far below.
RIGID = 1e-3

# Ulps of the largest |eigenvalue|. A frequency whose square is smaller is that of a rigid motion. Chosen.
ZERO_ULPS = 1000

# Part of the length of the shortest lattice vector: positions that differ by less are the same site. Chosen.
SAME_SITE = 1e-3

# Part of the shortest lattice vector: images at distances that differ by less are equally near. Chosen: well above the
# rounding of positions.
SAME_DISTANCE = 1e-5

# Images of the supercell in each direction, among which the nearest is looked for: enough for cells that are not very skewed.
IMAGES = 2
