"""Rigid motions of particles: the directions in which an energy of their distances does not change.

Depends on the arguments of operators. Must never know an eigensolver.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.arguments import as_array, check_x
from hessop._operator.block_jacobi import wide
from hessop._spectra import tuning
from hessop._spectra.problem import orthonormal


def rigid_motions(x: Any, *, masses: Any = None, periodic: bool = False) -> Any:
    """Translations and rotations of particles, as directions to project out: pass them as `null=`.

    Particles in three dimensions have six, those on a line five; in a periodic box, only the three translations leave the
    energy unchanged. In two dimensions there are three; a single particle has only translations.

    Args:
        x: positions [N, d] with d = 1, 2 or 3, or a pytree with one such array.
        masses: None; or, for a Hessian in mass-weighted coordinates √m x, the masses [N], by whose square roots the
            displacements are multiplied. `eigsh(mass=...)` and `normal_modes` do that themselves.
        periodic: only translations.

    Returns:
        Orthonormal directions, a pytree like x with a new leading axis of k. Under jit, where the number cannot depend on x,
        zeros replace directions that are missing.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> water = jnp.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])
        >>> hessop.rigid_motions(water).shape
        (6, 3, 3)
        >>> hessop.rigid_motions(jnp.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])).shape  # a rotation about a line moves nothing
        (5, 2, 3)

    References:
        Wilson, Decius and Cross, Molecular Vibrations (1955), section 2-2.
    """
    leaves, tree = jax.tree.flatten(check_x(x))
    if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] not in (1, 2, 3) or not leaves[0].shape[0]:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"x: got arrays of shapes {shapes}, expected the positions of particles, one array [N, 1], [N, 2] or [N, 3]"
        )
    if not isinstance(periodic, bool):
        raise TypeError(f"periodic: got {periodic!r}, expected True or False")
    positions = leaves[0]
    rows = motions(wide(positions), periodic=periodic)
    if masses is not None:
        roots = jnp.sqrt(check_masses(masses, positions.shape[0]).astype(rows.dtype))
        rows = rows * jnp.repeat(roots, positions.shape[1])[None]
    rows = orthonormal(rows)
    if not isinstance(rows, Tracer):
        rows = rows[np.any(jax.device_get(rows) != 0, axis=1)]
    return tree.unflatten([rows.reshape(-1, *positions.shape).astype(positions.dtype)])


def check_masses(masses: Any, number: int) -> Array:
    """Positive masses [N].

    Raises:
        TypeError, ValueError: they are something else.
    """
    array = as_array(masses, "masses", f"{number} positive numbers")
    if array.shape != (number,) or jnp.iscomplexobj(array):
        raise ValueError(f"masses: got shape {array.shape} and dtype {array.dtype}, expected {number} positive numbers")
    if not isinstance(array, Tracer) and not np.all((jax.device_get(array) > 0) & np.isfinite(jax.device_get(array))):
        raise ValueError("masses: got numbers that are not positive and finite")
    return array


def motions(x: Array, *, periodic: bool) -> Array:
    """Translations and rotations about the centre of particles x [N, d], as rows [k, N d], zero where nothing moves."""
    number, d = x.shape
    axes = jnp.eye(d, dtype=x.dtype)
    translations = [jnp.broadcast_to(axis[None], x.shape) for axis in axes]
    if periodic or d == 1:
        return jnp.stack(translations).reshape(d, -1)
    # About the principal axes: if the particles are on a line, one of them is that line.
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    _, extents, frame = jnp.linalg.svd(jnp.pad(centred, ((0, max(0, d - number)), (0, 0))), full_matrices=False)
    extents = jnp.where(extents > tuning.ON_A_LINE * extents[0], extents, 0)
    own = jnp.matmul(centred, frame.T, precision="highest")
    rotations = []
    for i, j in itertools.combinations(range(d), 2):
        # i and j span the plane of the rotation; extents[i] >= extents[j].
        turned = own[:, i, None] * frame[None, j] - own[:, j, None] * frame[None, i]
        rotations.append(jnp.where(extents[i] > 0, turned, 0))
    return jnp.stack([*translations, *rotations]).reshape(-1, x.size)
