"""Every threshold of normal modes and phonons. Depends on nothing."""

# Part of the largest |eigenvalue|. If the Hessian moves a rigid motion by more, it is none: the point is not stationary, or the
# energy depends on the orientation, as in a periodic box. Chosen: a cluster that was relaxed to 1e-6 stays far below.
RIGID = 1e-3

# Part of the length of the shortest lattice vector: positions that differ by less are the same site. Chosen.
SAME_SITE = 1e-3

# Part of the distance: images at distances that differ by less are equally near. Chosen: well above the rounding of positions.
SAME_DISTANCE = 1e-5

# Images of the supercell in each direction, among which the nearest is looked for: enough for cells that are not very skewed.
IMAGES = 2
