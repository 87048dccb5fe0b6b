"""The front door: `HessianOperator`, the Hessian of a function at a point as a lineax linear operator.

It holds the point and finds the program of the function at its shapes, which is traced once; `AbstractHessian` does the
rest. Nothing below this module knows it.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop import _recompute
from hessop._abstract import AbstractHessian
from hessop._annotations import (
    Arguments,
    Function,
    Memory,
    Route,
    RouteName,
    Scalar,
    SelfPairs,
    SelfPairsName,
)
from hessop._arguments import Static, as_leaf, check_scalar, check_x, split_args
from hessop._budget import parse_memory
from hessop._lineax import check_tags, register
from hessop._plan import Plan, choose_route
from hessop._point import Point, shapes_of
from hessop._products import ProductChoice, choose_product, expected
from hessop._program import HessianProgram, program_for
from hessop._structured import terms_of
from hessop._take import Row
from hessop._terms_program import TermsProgram
from hessop._tiled import untiled
from hessop._tree import leaf_name
from hessop.structure import StructuredHessian


@register
class HessianOperator(AbstractHessian):
    """The Hessian of `fn` at `x`, matrix-free: a symmetric [`lineax.AbstractLinearOperator`].

    A pytree whose leaves are x and the arrays of args: a new point of the same shape never recompiles, and everything works
    under `jax.jit`, `jax.vmap` and `jax.grad` (with respect to x and to args).

    Attributes:
        fn: the function.
        x: the point, a pytree of real floating arrays of n elements in all.
        shift: lam of H + lam I, or None.
        tags: what is known of the matrix; holds `lineax.symmetric_tag`.

    Example:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x, a: a * jnp.sum(x[1:] ** 2 * x[:-1]), jnp.array([1.0, 2.0, 3.0]), (0.5,))
        >>> print(H.mv(jnp.array([1.0, 0.0, 0.0])))
        [0. 2. 0.]
        >>> print(H.materialize())
        [[0. 2. 0.]
         [2. 1. 3.]
         [0. 3. 2.]]
    """

    fn: Callable[..., Any] = eqx.field(static=True)
    x: Any
    _arrays: tuple[Array, ...]
    _static: Static = eqx.field(static=True)
    shift: Array | None
    tags: frozenset[object] = eqx.field(static=True)
    route: Route = eqx.field(static=True)
    memory: int | None = eqx.field(static=True)
    self_pairs: SelfPairs = eqx.field(static=True)

    def __init__(
        self,
        fn: Function,
        x: Any,
        args: Arguments = (),
        *,
        tags: Any = (),
        route: Route = "auto",
        memory: Memory = None,
        self_pairs: SelfPairs = "auto",
    ):
        """Hold `fn` and the point; nothing is computed.

        Args:
            fn: function fn(x, *args) that returns a real scalar. Static: give the same object again, not a new lambda.
            x: pytree of real floating arrays.
            args: tuple of pytrees. Arrays and Python floats may change without recompiling; other leaves are static.
            tags: tags of lineax, such as `lineax.positive_semidefinite_tag`; unchecked promises of the user.
            route: "structure" (terms), "columns" (products with basis vectors), "tiles" (nothing as large as all pairs is
                stored, whatever that costs), or "auto" for the cheapest.
            memory: the budget of everything that is asked of this operator, in bytes or as "4GB"; by default what the
                device (or machine, or container) has free, less a margin.
            self_pairs: "auto" treats the pairs i == i as the constants they are where they reach a primitive that is
                singular there, "constant" always, "as_written" never.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message says which and what was expected.
        """
        self.fn, module = as_leaf(untiled(fn))
        self.x = check_x(x)
        if not isinstance(args, tuple | list):
            raise TypeError(f"args: got {type(args).__name__}, expected a tuple of what follows x in fn(x, *args)")
        self._arrays, self._static = split_args((*module, *args))
        self.shift = None
        self.tags = check_tags(tags)
        self.route = _one_of(route, RouteName, "route")
        self.memory = None if memory is None else parse_memory(memory)
        self.self_pairs = _one_of(self_pairs, SelfPairsName, "self_pairs")

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments that follow x (a callable pytree given as `fn` is the first of them)."""
        return self._static(self._arrays)

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.x)

    @property
    def value(self) -> Array:
        """fn(x, *args), a scalar."""
        return self._run("value", lambda program, _, primals, shift: _recompute.value(program, primals))

    @property
    def gradient(self) -> Any:
        """The gradient, a pytree like x. Outside of jit, one that is not finite is reported by a RuntimeWarning."""
        if not self._point().traced:
            _warn(self.problem())
        return self.raw_gradient()

    def raw_gradient(self) -> Any:
        """The gradient, a pytree like x, without a look at whether it is finite."""
        return self._like_x(self._gradient())

    def raw_value_and_gradient(self) -> tuple[Array, Any]:
        """Both from one evaluation, without a look at whether they are finite."""
        name = "value and gradient"
        value, gradient = self._run(name, lambda program, _, primals, shift: _recompute.value_and_gradient(program, primals))
        return value, self._like_x(gradient)

    def problem(self) -> str | None:
        """What is not finite at this point and what to look at, or None; not inside jit."""
        return self._problem(self._gradient())

    def damped(self, lam: Scalar) -> "HessianOperator":
        """H + lam I in one product, tagged positive semidefinite.

        Damping is how a Hessian is made positive definite, so the tag is gained: asking for it asserts that `lam` is no
        less than minus the smallest eigenvalue. A lam known to be negative gains nothing and keeps only what stays true.

        Args:
            lam: scalar, may be traced.

        Returns:
            An operator with the same value and gradient, whose matrix is H + lam I.

        Raises:
            TypeError, ValueError: `lam` is not a real scalar.
        """
        shift = check_scalar(lam, "lam").astype(self._layout().dtype)
        total = shift if self.shift is None else self.shift + shift
        undamped = HessianOperator(
            self.fn,
            self.x,
            self.args,
            tags=_damped_tags(self.tags, lam),
            route=self.route,
            memory=self.memory,
            self_pairs=self.self_pairs,
        )
        return eqx.tree_at(lambda op: op.shift, undamped, total, is_leaf=lambda leaf: leaf is None)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flat vectors, with matvec, rmatvec and matmat."""
        from hessop._scipy_operator import linear_operator

        return linear_operator(self)

    def plan(self, memory: Memory = None) -> Plan:
        """What `materialize()` would do at this budget; print it.

        Raises:
            MemoryBudgetError: nothing fits.
        """
        point = self._point()
        budget = self._budget(memory, None, point.primals or ())
        assert budget is not None
        choice = choose_route(point, Row(), route=self.route, chunk=None, budget=budget)
        described, fallbacks = (), ()
        if choice.route == "structure":
            terms = jax.eval_shape(lambda *r: terms_of(point, r, choice.limit), *shapes_of(point, stored=True))
            described, fallbacks = tuple(terms.describe()), terms.fallbacks
        return Plan(
            n=point.layout.n,
            dtype=point.layout.dtype,
            route=choice.route,
            mode=point.program.mode,
            terms=described,
            fallbacks=fallbacks,
            chunk=choice.chunking.chunk if choice.chunking else None,
            stored=choice.chunking.stored if choice.chunking else True,
            budget=budget,
            peak=choice.peak or 0,
            measured=choice.measured,
            reason=choice.reason,
            products=(self._single_product(point), str(self._choose_product(point, memory))),
            self_pairs=point.program.self_pairs,
            rewritten=point.program.rewritten,
            problem=None if point.traced else self.problem(),
        )

    def linearise(self) -> "LinearizedHessian":
        """The same operator in the form whose products cost least from now on, which `plan()` names.

        That is the terms of the Hessian where they pay for themselves within sqrt(n) products (`route="structure"` keeps
        them always, "columns" and "tiles" never); else the residuals; or the point itself, where making residuals of the
        size of all pairs anew is faster than reading them, and in float32 more exact than the terms.

        Raises:
            MemoryBudgetError: the terms that route="structure" asks for do not fit the budget.
        """
        point = self._point()
        choice = self._choose_product(point)
        program, source = choice.program, point.primals or ()
        if choice.stored:
            source = program.executable(("residuals", False), lambda: jax.jit(program.residuals))(list(source))
        kept = (tuple(source), choice.stored)
        return LinearizedHessian(program, *kept, self.shift, self.in_structure(), self.tags, self.route, self.memory)

    # --- inner ---

    def _point(self) -> Point:
        program = program_for(self.fn, self.x, self._arrays, self._static, self.self_pairs)
        primals = (*program.consts, *jax.tree.leaves(self.x), *self._arrays)
        return Point(program, self._layout(), primals, None, self.shift)

    def _choose_product(self, point: Point, memory: Memory = None) -> ProductChoice:
        budget = self._budget(memory, None, point.primals or ())
        assert budget is not None
        asked = memory is not None or self.memory is not None
        count = expected(point.layout.n)
        return choose_product(point, route=self.route, budget=budget, count=count, compile=asked or not point.traced)

    def _single_product(self, point: Point) -> str:
        tiled = _recompute.recomputes(point.program, dear=self.route == "tiles")
        return "by tiles, which store no residuals" if tiled else "with residuals made for it"

    def _gradient(self) -> list[Array]:
        return self._run("gradient", lambda program, _, primals, shift: _recompute.gradient(program, primals))

    def _check_finite(self, matrix: Array) -> None:
        if not _trace_is_finite(matrix):
            _warn(self.problem())

    def _problem(self, gradient: Sequence[Array]) -> str | None:
        """Which entries of the gradient are not finite and what to look at, or None."""
        paths = jax.tree_util.tree_flatten_with_path(self.x)[0]
        found = []
        for (path, leaf), g in zip(paths, gradient, strict=True):
            bad, bad_x = _count_not_finite(g), _count_not_finite(leaf)
            if bad_x:
                found.append(f"{leaf_name(path, 'x')} itself has {bad_x} of {leaf.size} entries that are not finite")
            elif bad:
                found.append(f"{bad} of {g.size} entries of the gradient with respect to {leaf_name(path, 'x')}")
        if not found:
            return None
        return "not finite: " + "; ".join(found) + ". " + _cause(self._point().program)


@register
class LinearizedHessian(AbstractHessian):
    """What `lineax.linearise` gives, for many products at one point.

    Attributes:
        program: what computes products.
        source: what it keeps of the point: residuals or the arrays of the terms; or the point itself.
        stored: whether it is not the point itself.
        shift: lam of H + lam I, or None.
        tags: what is known of the matrix; holds `lineax.symmetric_tag`.
    """

    program: HessianProgram = eqx.field(static=True)
    source: tuple[Array, ...]
    stored: bool = eqx.field(static=True)
    shift: Array | None
    structure: Any = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)
    route: RouteName = eqx.field(static=True)
    memory: int | None = eqx.field(static=True)

    def __init__(
        self,
        program: HessianProgram,
        source: tuple[Array, ...],
        stored: bool,
        shift: Array | None,
        structure: Any,
        tags: frozenset[object],
        route: RouteName,
        memory: int | None,
    ):
        self.program, self.source, self.stored, self.shift = program, source, stored, shift
        self.tags, self.route, self.memory = tags, route, memory
        leaves, tree = jax.tree.flatten(structure)
        self.structure = (tuple(leaves), tree)  # hashable

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        leaves, tree = self.structure
        return tree.unflatten(leaves)

    def linearise(self) -> "LinearizedHessian":
        """The operator itself."""
        return self

    def _point(self) -> Point:
        primals, residuals = (None, self.source) if self.stored else (self.source, None)
        return Point(self.program, self._layout(), primals, residuals, self.shift)

    @property
    def terms(self) -> StructuredHessian | None:
        """The terms of the Hessian (without the shift), if these are what is kept."""
        return self.program.terms(self.source) if isinstance(self.program, TermsProgram) else None

    def _check_finite(self, matrix: Array) -> None:
        if not _trace_is_finite(matrix):
            _warn("not finite: the Hessian has entries that are not finite. " + _cause(self.program))


def _one_of(value: Any, choices: Any, name: str) -> Any:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}")
    return value


def _damped_tags(tags: frozenset[object], lam: Any) -> frozenset[object]:
    """The tags of H + lam I: see `HessianOperator.damped`."""
    kept = tags - {lx.unit_diagonal_tag, lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}
    negative = not isinstance(lam, Tracer) and float(lam) < 0
    nonpositive = not isinstance(lam, Tracer) and float(lam) <= 0
    if lx.negative_semidefinite_tag in tags and nonpositive:
        return kept | {lx.negative_semidefinite_tag}
    return kept if negative else kept | {lx.positive_semidefinite_tag}


@jax.jit
def _finite_trace(matrix: Array) -> Array:
    # Every n + 1st entry; jnp.trace reads the whole matrix under a mask, which takes as long as making it did.
    return jnp.all(jnp.isfinite(matrix.reshape(-1)[:: matrix.shape[1] + 1]))


def _trace_is_finite(matrix: Array) -> bool:
    """Whether the trace is finite: a NaN that poisons rows shows there, for n reads rather than n^2."""
    return bool(_finite_trace(matrix))


def _count_not_finite(array: Array) -> int:
    return int(np.sum(~np.asarray(jnp.isfinite(array))))


def _cause(program: HessianProgram) -> str:
    if program.self_pairs and not program.rewritten:
        places = "; ".join(f"{pair.primitive} at {pair.where}" for pair in program.self_pairs)
        return (
            f"Self pairs (i == i) reach a primitive that is singular at zero: {places}. "
            f'self_pairs="auto" treats them as the constants they are'
        )
    return (
        "Look for a primitive that is singular at this point (sqrt, log, division or a norm at zero) behind a jnp.where that "
        "masks only its result: its input must be masked too; jax.debug_nans shows the place"
    )


def _warn(problem: str | None) -> None:
    if problem is not None:
        warnings.warn(problem, RuntimeWarning, stacklevel=3)
