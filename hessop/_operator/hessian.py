"""The front door: `HessianOperator`, the Hessian of a function at a point as a lineax linear operator.

It traces the function as it is, finds the program of what that says, and holds the point; `AbstractHessian` does the rest.
Nothing below this module knows it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import equinox as eqx
import jax
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

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
from hessop._base.arguments import Static, alike, as_leaf, check_calls, check_scalar, check_x
from hessop._base.bytes import free_memory, parse_memory
from hessop._base.settings import settings
from hessop._operator.abstract import AbstractHessian
from hessop._operator.lineax import check_tags, register, tag_names, tags_named
from hessop._operator.method import method
from hessop._program.finite import point_problem, warn
from hessop._program.point import Point, shapes_of
from hessop._program.program import AbstractProgram, HessianProgram, program_for
from hessop._program.terms import TermsProgram
from hessop._program.trace import name_of, trace
from hessop._routes import tiles as _recompute
from hessop._routes.choose_products import ProductDecision, choose_product, expected
from hessop._routes.chunks import residuals_of
from hessop._routes.decision import Request
from hessop._routes.entries import decide, device_of
from hessop._routes.plan import Plan
from hessop._routes.terms import terms_of
from hessop._routes.tiled import untiled
from hessop._routes.tuning import CALLS_EXPECTED
from hessop._routes.wanted import MATRIX
from hessop._structure import StructuredHessian

# Characters: a repr on one line, and the longest x that is shown in it.
_WIDE, _LONG = 10**6, 60
_ROUTES, _SELF_PAIRS = get_args(RouteName), get_args(SelfPairsName)


@register
class HessianOperator(AbstractHessian):
    """The Hessian of `fn` at `x`, matrix-free: a symmetric `lineax.AbstractLinearOperator`.

    It is the Hessian of the function as it is when the operator is made: `fn` is traced once, and what it captured (globals,
    attributes, numpy arrays that change in place) is held as it was. Make an operator again to see a change. A function that
    says the same, a new lambda or partial, compiles nothing.

    A pytree whose leaves are x, the arrays of args and those that `fn` captured: a new point of the same shape never
    recompiles, and everything works under `jax.jit`, `jax.vmap` and `jax.grad` (with respect to x and to args).

    Attributes:
        program: what the function says, linearised.
        x: the point, a pytree of real floating arrays of n elements in all.
        shift: lam of H + lam I, or None.
        tags: what is known of the matrix; holds `lineax.symmetric_tag`.

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
    _made_of: "_MadeOf" = eqx.field(static=True, repr=False)

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
            tags: tags of lineax, such as `lineax.positive_semidefinite_tag`; unchecked promises of the user.
            route: "structure" (terms), "columns" (products with basis vectors), "tiles" (nothing as large as all pairs is
                stored, whatever that costs), or "auto" for the cheapest.
            memory: the budget of everything that is asked of this operator, in bytes or as "4GB"; by default what the
                device (or machine, or container) has free, less a margin.
            self_pairs: "auto" treats the pairs i == i as the constants they are where they reach a primitive that is
                singular there, "constant" always, "as_written" never.
            calls: how often what is compiled is expected to be called, at this point or new ones: the cheapest route is that
                whose compilation and calls take least in all. A large number is for a loop that runs for hours, 1 for a
                single look.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message says which and what was expected.
        """
        leaf, module = as_leaf(untiled(fn))
        x = check_x(x)
        if not isinstance(args, tuple | list):
            raise TypeError(f"args: got {type(args).__name__}, expected a tuple of what follows x in fn(x, *args)")
        options = {
            "tags": check_tags(tags),
            "route": _one_of(route, _ROUTES, "route"),
            "memory": None if memory is None else parse_memory(memory),
            "self_pairs": _one_of(self_pairs, _SELF_PAIRS, "self_pairs"),
            "calls": check_calls(calls),
        }
        with settings():
            traced = trace(leaf, x, (*module, *args))
            program, captured = program_for(traced, self_pairs)
        made_of = _MadeOf(_Source(leaf, traced.out_tree), traced.static, **options)
        # At once: equinox looks at each attribute that is set.
        fields = {"program": program, "x": x, "_arrays": traced.arrays, "_captured": captured, "shift": None}
        vars(self).update(fields, _made_of=made_of)

    @classmethod
    def quickly(cls, *args: Any, **options: Any) -> "HessianOperator":
        """An operator for one use, without what equinox and lineax check of each instance: it holds for all of them."""
        made = object.__new__(cls)
        made.__init__(*args, **options)
        return made

    @property
    def tags(self) -> frozenset[object]:
        """What is known of the matrix."""
        return self._made_of.tags

    @property
    def route(self) -> RouteName:
        """The route that was asked for."""
        return self._made_of.route

    @property
    def memory(self) -> int | None:
        """The budget in bytes, if one was given."""
        return self._made_of.memory

    @property
    def self_pairs(self) -> SelfPairsName:
        """How self pairs are treated."""
        return self._made_of.self_pairs

    @property
    def calls(self) -> float:
        """How often what is compiled is expected to be called."""
        return self._made_of.calls

    @property
    def fn(self) -> Callable[..., Any]:
        """The function, or after a `jax.jit` one that says the same."""
        return self._made_of.source.fn

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments that follow x (a callable pytree given as `fn` is the first of them)."""
        return self._made_of.static(self._arrays)

    def __repr__(self) -> str:
        x = eqx.tree_pformat(self.x, width=_WIDE)
        leaves = jax.tree.leaves(self.x)
        if len(x) > _LONG:
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
        return self._run("value", lambda program, _, primals, shift: _recompute.value(program, primals))

    @property
    @method
    def gradient(self) -> Any:
        """The gradient, a pytree like x. Outside of jit, one that is not finite is reported by a RuntimeWarning."""
        gradient = self._gradient()
        if not self._point().traced and not all(np.all(np.isfinite(np.asarray(g, np.float64))) for g in gradient):
            warn(self._problem_of_point())
        return self._like_x(gradient)

    @method
    def raw_gradient(self) -> Any:
        """The gradient, a pytree like x, without a look at whether it is finite."""
        return self._like_x(self._gradient())

    @method
    def raw_value_and_gradient(self) -> tuple[Array, Any]:
        """Both from one evaluation, without a look at whether they are finite."""
        name = "value and gradient"
        value, gradient = self._run(name, lambda program, _, primals, shift: _recompute.value_and_gradient(program, primals))
        return value, self._like_x(gradient)

    @method
    def problem(self) -> str | None:
        """What of the value and the gradient is not finite at this point and what to look at, or None; not inside jit."""
        value, gradient = self.raw_value_and_gradient()
        return point_problem(self.program, self.x, value, jax.tree.leaves(gradient))

    @method
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
        made_of = dataclasses.replace(self._made_of, tags=_damped_tags(self.tags, lam))
        return self._replace(shift=total, _made_of=made_of)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flat vectors, with matvec, rmatvec and matmat."""
        from hessop._operator.scipy import linear_operator

        return linear_operator(self)

    @method
    def plan(self, memory: Memory = None) -> Plan:
        """What `materialize()` would do at this budget; print it. Nothing is computed until then.

        Raises:
            MemoryBudgetError: nothing fits.
        """
        point = self._point()
        asked = self.memory if memory is None else parse_memory(memory)
        decision = decide(point, Request(MATRIX, self.route, memory=asked, calls=self.calls))
        described, fallbacks = (), ()
        if decision.route == "structure":
            terms = jax.eval_shape(lambda *r: terms_of(point, r, decision.limit_bytes), *shapes_of(point, stored=True))
            sizes = terms.term_sizes()
            lines = terms.describe()
            described = tuple(lines[k] for k in sorted(range(len(lines)), key=lambda k: -sizes[k]))
            fallbacks = terms.fallbacks
        return Plan(
            n=point.layout.n,
            dtype=point.layout.dtype,
            decision=decision,
            mode=point.program.mode,
            terms=described,
            fallbacks=fallbacks,
            calls=self.calls,
            budget=asked or free_memory(device_of(point)),
            products=(self._single_product(point), str(self._choose_product(point, memory))),
            self_pairs=point.program.self_pairs,
            rewritten=point.program.rewritten,
            look=(lambda: None) if point.traced else self.problem,
        )

    @method
    def linearise(self) -> "LinearizedHessian":
        """The same operator in the form whose products cost least from now on, which `plan()` names.

        That is the terms of the Hessian where they pay for themselves within sqrt(n) products (`route="structure"` keeps
        them always, "columns" and "tiles" never); else the residuals; or the point itself, where making residuals of the
        size of all pairs again is faster than reading them, and in float32 more exact than the terms.

        Raises:
            MemoryBudgetError: the terms that route="structure" asks for do not fit the budget.
        """
        point = self._point()
        choice = self._choose_product(point)
        program, source = choice.program, point.source
        if choice.stored:
            source = residuals_of(point._replace(program=program))(source)[0]
        kept = (tuple(source), choice.stored)
        return LinearizedHessian(
            program, *kept, self.shift, self.in_structure(), self.tags, self.route, self.memory, self.calls
        )

    def in_container(self, result: Any) -> Any:
        """`result` in the container that the function returns its scalar in."""
        return self._made_of.source.out_tree.unflatten([result])

    # --- inner ---

    def _tree(self) -> Any:
        return jax.tree.structure(self.x)

    def _point(self) -> Point:
        leaves = (*jax.tree.leaves(self.x), *self._arrays)
        program, captured = self.program, self._captured
        if not _fits(program, leaves):
            # Somebody changed shapes or dtypes of the leaves: it is the same function still, but another program.
            with settings():
                program, captured = program_for(trace(self.fn, self.x, self.args), self.self_pairs)
        return Point(program, (*program.own, *captured, *leaves), False, self.shift)

    def _replace(self, **fields: Any) -> "HessianOperator":
        """The same operator with other values of some fields."""
        new = object.__new__(HessianOperator)
        for field in dataclasses.fields(self):
            object.__setattr__(new, field.name, fields.get(field.name, getattr(self, field.name)))
        return new

    def __reduce__(self) -> Any:
        """To be pickled: the function by reference, which is traced where it is loaded."""
        options = {"tags": tag_names(self.tags), "route": self.route, "memory": self.memory}
        options |= {"self_pairs": self.self_pairs, "calls": self.calls}
        return _made_again, (self.fn, self.x, self.args, options, self.shift)

    def _choose_product(self, point: Point, memory: Memory = None) -> ProductDecision:
        asked = self.memory if memory is None else parse_memory(memory)
        budget = asked or free_memory(device_of(point))
        count, compile = expected(point.layout.n), asked is not None or not point.traced
        how = {"route": self.route, "count": count, "calls": self.calls, "compile": compile}
        key = ("product", asked, *how.values())
        return point.program.memo.decision(key, budget, lambda: choose_product(point, budget=budget, **how))

    def _single_product(self, point: Point) -> str:
        tiled = _recompute.recomputes(point.function, expensive=self.route == "tiles")
        return "by tiles, which store no residuals" if tiled else "with residuals made for it"

    def _gradient(self) -> list[Array]:
        return self._run("gradient", lambda program, _, primals, shift: _recompute.gradient(program, primals))

    def _problem_of_point(self) -> str | None:
        return self.problem()


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

    program: AbstractProgram = eqx.field(static=True, repr=False)
    source: tuple[Array, ...]
    stored: bool = eqx.field(static=True)
    shift: Array | None
    structure: Any = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)
    route: RouteName = eqx.field(static=True)
    memory: int | None = eqx.field(static=True)
    calls: float = eqx.field(static=True)

    def __init__(
        self,
        program: AbstractProgram,
        source: tuple[Array, ...],
        stored: bool,
        shift: Array | None,
        structure: Any,
        tags: frozenset[object],
        route: RouteName,
        memory: int | None,
        calls: float,
    ):
        self.program, self.source, self.stored, self.shift = program, source, stored, shift
        self.tags, self.route, self.memory, self.calls = tags, route, memory, calls
        leaves, tree = jax.tree.flatten(structure)
        self.structure = (tuple(leaves), tree)  # hashable

    def __repr__(self) -> str:
        layout = self.program.layout
        kept = "terms" if isinstance(self.program, TermsProgram) else "residuals" if self.stored else "the point"
        return f"LinearizedHessian({layout.n} x {layout.n} {layout.dtype}, from {kept})"

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        leaves, tree = self.structure
        return tree.unflatten(leaves)

    @method
    def linearise(self) -> "LinearizedHessian":
        """The operator itself."""
        return self

    def _tree(self) -> Any:
        return self.structure[1]

    def _point(self) -> Point:
        return Point(self.program, self.source, self.stored, self.shift)

    @property
    def terms(self) -> StructuredHessian | None:
        """The terms of the Hessian (without the shift), if these are what is kept."""
        return self.program.terms(self.source) if isinstance(self.program, TermsProgram) else None

    def _problem_of_point(self) -> str | None:
        return None

    def __reduce__(self) -> Any:
        raise TypeError(
            "LinearizedHessian: cannot be pickled, as it holds a program and not the function; pickle the HessianOperator and "
            "linearise that again where it is loaded"
        )


@dataclasses.dataclass(frozen=True)
class _MadeOf:
    """What an operator was made of besides arrays.

    Attributes:
        source: the function, for people.
        static: what is no array of args.
        tags: what is known of the matrix.
        route: the user's choice.
        memory: the user's budget in bytes.
        self_pairs: the user's choice.
        calls: how often what is compiled is expected to be called.
    """

    source: "_Source"
    static: Static
    tags: frozenset[object]
    route: RouteName
    memory: int | None
    self_pairs: SelfPairsName
    calls: float


class _Source:
    """Where a program came from: for people and for copies. Equal to any other, as the program says what is computed."""

    def __init__(self, fn: Callable[..., Any], out_tree: Any):
        self.fn, self.out_tree = fn, out_tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source)

    def __hash__(self) -> int:
        return 0


def _fits(program: HessianProgram, leaves: Sequence[Any]) -> bool:
    """Whether the leaves of x and args are what the program was traced for."""
    avals = program.input_avals[len(program.input_avals) - len(leaves) :]
    return alike(leaves, avals) or all(  # of numpy's, perhaps
        np.shape(a) == aval.shape and a.dtype == aval.dtype for a, aval in zip(leaves, avals, strict=True)
    )


def _made_again(fn: Callable[..., Any], x: Any, args: tuple[Any, ...], options: dict[str, Any], shift: Any) -> HessianOperator:
    """An operator out of a pickle."""
    return HessianOperator(fn, x, args, **{**options, "tags": tags_named(options["tags"])})._replace(shift=shift)


def _one_of(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
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
