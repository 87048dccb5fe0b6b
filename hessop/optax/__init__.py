"""Newton's method as optax transformations: directions and complete solvers that cope with indefinite Hessians.

Imports optax, which `import hessop` does not: this package is loaded on first access to `hessop.optax`.
"""

# A direction, to be chained with a step size or a line search, and that chain.
from hessop.optax._newton_cg import (
    NewtonCGInfo as NewtonCGInfo,
    ScaleByNewtonCGState as ScaleByNewtonCGState,
    newton_cg as newton_cg,
    scale_by_newton_cg as scale_by_newton_cg,
)

# Saddle points.
from hessop.optax._saddle import SaddleSearch as SaddleSearch, Side as Side, saddle_search as saddle_search

# A complete solver.
from hessop.optax._trust_region import (
    NewtonTrustRegionState as NewtonTrustRegionState,
    TrustRegionInfo as TrustRegionInfo,
    newton_trust_region as newton_trust_region,
)
