"""`HessianOperator`: the Hessian of a function at a point as a lineax operator.

It traces the function, looks up the program of the trace, and holds the point; `AbstractHessian` does the rest. Nothing below
this module knows it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import equinox as eqx
import jax
import numpy as np
from jax import Array

from hessop._base.annotations import (
    Arguments,
    Calls,
    Function,
    Memory,
    Route,
    RouteName,
    Scalar,
    SelfPairs,
    SelfPairsName,
)
from hessop._base.arguments import alike, as_leaf, check_calls, check_scalar, check_x
from hessop._base.bytes import free_memory, parse_memory
from hessop._base.layout import TreeLayout
from hessop._base.settings import settings
from hessop._operator.abstract import AbstractHessian
from hessop._operator.arguments import one_of
from hessop._operator.linearized import LinearizedHessian
from hessop._operator.lineax import check_tags, damped_tags, register, tag_names, tags_named
from hessop._operator.method import method
from hessop._operator.origin import Options, Origin
from hessop._program.finite import all_finite, warn
from hessop._program.point import Point, shapes_of
from hessop._program.program import HessianProgram, program_for
from hessop._program.trace import name_of, trace
from hessop._routes import tiles
from hessop._routes.choose_products import ProductDecision, choose_product
from hessop._routes.chunks import residuals_of
from hessop._routes.entries import decide
from hessop._routes.plan import Plan
from hessop._routes.terms import terms_of
from hessop._routes.tiled import untiled
from hessop._routes.tuning import CALLS_EXPECTED
from hessop._routes.wanted import MATRIX, Request

# In characters: wide enough to print x on one line, and the longest x that a repr shows.
_ONE_LINE, _LONGEST_X = 10**6, 60
_ROUTES, _SELF_PAIRS = get_args(RouteName), get_args(SelfPairsName)


@register
class HessianOperator(AbstractHessian):
    """The Hessian of `fn` at `x`, matrix-free: a symmetric `lineax.AbstractLinearOperator`.

    `fn` is traced once, when the operator is made. Whatever it captured (globals, attributes, numpy arrays) is fixed at that
    time; to see a later change, make a new operator. A new lambda or partial with the same trace does not recompile.

    The operator is a pytree whose leaves are x, the arrays of args and those that `fn` captured. A new point of the same shape
    never recompiles, and everything works under `jax.jit`, `jax.vmap` and `jax.grad` (with respect to x and args).

    Attributes:
        program: the linearised function.
        x: the point, a pytree of real floating arrays with n elements in total.
        shift: lam of H + lam I, or None.
        tags: lineax tags of the matrix, including `lineax.symmetric_tag`.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x, a: a * jnp.sum(x[1:] ** 2 * x[:-1]), jnp.array([1.0, 2.0, 3.0]), (0.5,))
        >>> print(H.mv(jnp.array([1.0, 0.0, 0.0])))
        [0. 2. 0.]
        >>> print(H.materialize())
        [[0. 2. 0.]
         [2. 1. 3.]
         [0. 3. 2.]]
    """

    program: HessianProgram = eqx.field(static=True, repr=False)
    x: Any
    _arrays: tuple[Array, ...]
    _captured: tuple[Array, ...] = eqx.field(repr=False)
    shift: Array | None
    _origin: Origin = eqx.field(static=True, repr=False)

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
        calls: Calls = CALLS_EXPECTED,
    ):
        """Trace `fn` and hold the point; nothing is computed.

        Args:
            fn: function fn(x, *args) that returns a real scalar.
            x: pytree of real floating arrays.
            args: tuple of pytrees. Arrays and floats may change without recompiling; other leaves are static.
            tags: lineax tags, such as `lineax.positive_semidefinite_tag`; promises that are not checked.
            route: "structure" (terms), "columns" (products with basis vectors), "tiles" (no N x N intermediates, at any
                cost), "coloring" (products, each of several columns without a common row; needs asdex), or "auto" for the
                cheapest of the others.
            memory: the budget for each call on this operator, in bytes or text like "4GB"; by default the free memory of
                the device (or machine, or container), less a margin.
            self_pairs: "auto" treats self-pairs i == i as constants if they reach a primitive that is singular there,
                "constant" always does, and "as_written" never.
            calls: the expected number of calls of each executable, at this point or others. The cheapest route has the least
                total time for compilation and calls. Pass a large number for a loop that runs for hours, 1 for a single
                evaluation.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it, and what was expected.
        """
        leaf, module = as_leaf(untiled(fn))
        x = check_x(x)
        if not isinstance(args, tuple | list):
            raise TypeError(f"args: got {type(args).__name__}, expected a tuple of the arguments after x in fn(x, *args)")
        options = Options(
            tags=check_tags(tags),
            route=one_of(route, _ROUTES, "route"),
            memory=None if memory is None else parse_memory(memory),
            self_pairs=one_of(self_pairs, _SELF_PAIRS, "self_pairs"),
            calls=check_calls(calls),
        )
        with settings():
            traced = trace(leaf, x, (*module, *args))
            program, captured = program_for(traced, self_pairs)
        origin = Origin(leaf, traced.out_tree, traced.static, options)
        # All at once, because equinox intercepts each attribute that is set.
        vars(self).update(program=program, x=x, _arrays=traced.arrays, _captured=captured, shift=None, _origin=origin)

    @classmethod
    def quickly(cls, *args: Any, **options: Any) -> "HessianOperator":
        """Make an operator without the checks that equinox and lineax run on each instance; they hold by construction."""
        made = object.__new__(cls)
        made.__init__(*args, **options)
        return made

    @property
    def _options(self) -> Options:
        return self._origin.options

    @property
    def self_pairs(self) -> SelfPairsName:
        """How self pairs are treated."""
        return self._options.self_pairs

    @property
    def fn(self) -> Callable[..., Any]:
        """The function; after passing through `jax.jit`, possibly another one with the same trace."""
        return self._origin.fn

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments after x; a callable pytree passed as `fn` is the first of them."""
        return self._origin.static(self._arrays)

    def __repr__(self) -> str:
        x = eqx.tree_pformat(self.x, width=_ONE_LINE)
        leaves = jax.tree.leaves(self.x)
        if len(x) > _LONGEST_X:
            x = f"<{len(leaves)} arrays of {sum(np.size(a) for a in leaves)} elements>"
        shift = "" if self.shift is None else f", shift={eqx.tree_pformat(self.shift)}"
        return f"HessianOperator({name_of(self.fn)}, x={x}{shift})"

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        leaves, tree = jax.tree_util.tree_flatten(self.x)
        if alike(leaves, self.program.x_input_avals):
            return tree.unflatten(self.program.x_avals)
        return tree.unflatten([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves])

    @property
    @method
    def value(self) -> Array:
        """fn(x, *args), a scalar."""
        return self._run("value", lambda program, _, primals, shift: tiles.value(program, primals))

    @property
    @method
    def gradient(self) -> Any:
        """The gradient, a pytree like x. Outside of jit, a RuntimeWarning reports entries that are not finite."""
        gradient = self._gradient()
        if not self._point().traced and not all(all_finite(np.asarray(g)) for g in gradient):
            warn(self._problem_of_point())
        return self._like_x(gradient)

    @method
    def raw_gradient(self) -> Any:
        """The gradient, a pytree like x, without a check that it is finite."""
        return self._like_x(self._gradient())

    @method
    def raw_value_and_gradient(self) -> tuple[Array, Any]:
        """The value and the gradient from one evaluation, without a check that they are finite."""
        value, gradient = self._value_and_gradient()
        return value, self._like_x(gradient)

    @method
    def problem(self) -> str | None:
        """What is not finite in the value or the gradient at this point, and the likely cause, or None; not inside jit."""
        return self._problem_of_point()

    @method
    def damped(self, lam: Scalar) -> "HessianOperator":
        """H + lam I in one product, tagged positive semidefinite.

        The purpose of damping is to make a Hessian positive definite, so the operator gains the tag: by calling this, you
        assert that `lam` is at least minus the smallest eigenvalue. If lam is known to be negative, no tag is gained, and only
        tags that remain true are kept.

        Args:
            lam: scalar, may be traced.

        Returns:
            An operator with the same value and gradient, whose matrix is H + lam I.

        Raises:
            TypeError, ValueError: `lam` is not a real scalar.
        """
        shift = check_scalar(lam, "lam").astype(TreeLayout(self.in_structure()).dtype)
        total = shift if self.shift is None else self.shift + shift
        options = self._options._replace(tags=damped_tags(self.tags, lam))
        return self._replace(shift=total, _origin=dataclasses.replace(self._origin, options=options))

    def to_scipy(self, *, sparse: bool = False) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flat numpy vectors, with matvec, rmatvec, matmat and rmatmat.

        Args:
            sparse: return the matrix instead, as `to_csr()` does.
        """
        if sparse:
            return self.to_csr()
        from hessop._operator.scipy import linear_operator

        return linear_operator(self)

    @method
    def plan(self, memory: Memory = None) -> Plan:
        """What `materialize()` would do within this budget, and why; print it. Only printing it evaluates the function.

        Args:
            memory: budget in bytes, or text like "4GB"; by default that of the operator.

        Raises:
            MemoryBudgetError: nothing fits.
        """
        point = self._point()
        given_bytes = self.memory if memory is None else parse_memory(memory)
        decision = decide(point, Request(MATRIX, self.route, memory=given_bytes, calls=self.calls))
        described, fallbacks = (), ()
        if decision.route == "structure":
            terms = jax.eval_shape(lambda *r: terms_of(point, r, decision.limit_bytes), *shapes_of(point, stored=True))
            sizes, lines = terms.term_sizes(), terms.describe()
            described = tuple(line for _, line in sorted(zip(sizes, lines, strict=True), key=lambda pair: -pair[0]))
            fallbacks = terms.fallbacks
        tiled = tiles.recomputes(point.function, calls=self.calls, expensive=self.route == "tiles", rates=point.rates)
        single = "tile by tile, storing no residuals" if tiled else "from residuals computed for it"
        return Plan(
            n=point.layout.n,
            dtype=point.layout.dtype,
            decision=decision,
            mode=point.program.mode,
            terms=described,
            fallbacks=fallbacks,
            calls=self.calls,
            budget=given_bytes or free_memory(point.device),
            products=(single, str(self._choose_product(point, memory))),
            self_pairs=point.program.self_pairs,
            rewritten=point.program.rewritten,
            look=(lambda: None) if point.traced else self.problem,
        )

    @method
    def linearise(self) -> LinearizedHessian:
        """The same operator, in the form with the cheapest products, which `plan()` names.

        The form stores the terms of the Hessian if they pay off within sqrt(n) products (always with route="structure", never
        with "columns" or "tiles"), and otherwise the residuals. It stores only the point if recomputing N x N residuals is
        faster than reading them; in float32 this is also more accurate than terms.

        Raises:
            MemoryBudgetError: route="structure", and the terms do not fit the budget.
        """
        point = self._point()
        choice = self._choose_product(point)
        program, source = choice.program, point.source
        if choice.stored:
            source = residuals_of(point._replace(program=program))(source)[0]
        return LinearizedHessian(program, tuple(source), choice.stored, self.shift, self._tree(), self._options)

    def in_container(self, result: Any) -> Any:
        """`result` in the container in which the function returns its scalar."""
        return self._origin.out_tree.unflatten([result])

    # --- internal ---

    def _tree(self) -> Any:
        return jax.tree.structure(self.x)

    def _point(self) -> Point:
        leaves = (*jax.tree.leaves(self.x), *self._arrays)
        program, captured = self.program, self._captured
        if not _fits(program, leaves):
            # The user changed shapes or dtypes of leaves (`eqx.tree_at`): same function, another program.
            with settings():
                program, captured = program_for(trace(self.fn, self.x, self.args), self.self_pairs)
        return Point(program, (*program.own, *captured, *leaves), False, self.shift)

    def _replace(self, **fields: Any) -> "HessianOperator":
        """A copy with some fields replaced."""
        new = object.__new__(HessianOperator)
        for field in dataclasses.fields(self):
            object.__setattr__(new, field.name, fields.get(field.name, getattr(self, field.name)))
        return new

    def __reduce__(self) -> Any:
        """Pickle the function by reference; it is traced again when loaded."""
        options = {**self._options._asdict(), "tags": tag_names(self.tags)}
        return _made_again, (self.fn, self.x, self.args, options, self.shift)

    def _choose_product(self, point: Point, memory: Memory = None) -> ProductDecision:
        given_bytes = self.memory if memory is None else parse_memory(memory)
        budget = given_bytes or free_memory(point.device)
        count, compile = tiles.expected(point.layout.n), given_bytes is not None or not point.traced
        how = {"route": self.route, "count": count, "calls": self.calls, "compile": compile}
        key = ("product", given_bytes, point.platform, *how.values())
        return point.program.memo.decision(key, budget, lambda: choose_product(point, budget=budget, **how))

    def _gradient(self) -> list[Array]:
        return self._run("gradient", lambda program, _, primals, shift: tiles.gradient(program, primals))


def _fits(program: HessianProgram, leaves: Sequence[Any]) -> bool:
    """Whether the leaves of x and args have the shapes and dtypes that the program was traced with."""
    avals = program.input_avals[len(program.input_avals) - len(leaves) :]
    return alike(leaves, avals) or all(  # numpy arrays
        np.shape(a) == aval.shape and a.dtype == aval.dtype for a, aval in zip(leaves, avals, strict=True)
    )


def _made_again(fn: Callable[..., Any], x: Any, args: tuple[Any, ...], options: dict[str, Any], shift: Any) -> HessianOperator:
    """Make the operator again from a pickle."""
    return HessianOperator(fn, x, args, **{**options, "tags": tags_named(options["tags"])})._replace(shift=shift)
