"""CHOLMOD by scikit-sparse, whose interface changed from 0.4 to 0.5: Debian 12 has libraries for the former only.

Imports scikit-sparse where it is used. Must never know patterns or Hessians.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


class Cholesky:
    """The symbolic analysis of matrices with one pattern, and the factors of the last of them."""

    def __init__(self, matrix: Any):
        """Analyze a symmetric matrix in compressed columns; its values do not matter."""
        from sksparse import cholmod  # pyright: ignore[reportMissingImports]

        self._library = cholmod
        self._new = hasattr(cholmod, "CholeskyFactor")
        self._factor = cholmod.CholeskyFactor(matrix) if self._new else cholmod.analyze(matrix)

    def inverse(self, matrix: Any, shift: float) -> Callable[[np.ndarray], np.ndarray] | None:
        """The inverse of matrix + shift I; None if it is not positive definite. It is valid until the next call."""
        cholmod = self._library
        try:
            if self._new:
                self._factor.factorize(matrix, beta=shift)
            else:
                self._factor.cholesky_inplace(matrix, beta=shift)
                if not np.all(self._factor.D() > 0):  # it factorizes indefinite matrices too
                    return None
        except cholmod.CholmodNotPositiveDefiniteError:
            return None
        solve = self._factor.solve if self._new else self._factor

        def apply(b: np.ndarray) -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", cholmod.CholmodWarning)  # of small pivots: residuals are checked
                return solve(np.array(b, order="F"))  # writable, which scikit-sparse asks for

        return apply
