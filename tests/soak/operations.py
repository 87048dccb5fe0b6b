"""Operations for random programs: each takes a real array and a small integer, and returns a real array.

They keep numbers moderate and are twice differentiable where programs are likely to evaluate them, so that entries of a Hessian
can be compared. Each uses something that differentiation, indexing or batching treats in its own way.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax

OPERATIONS = {}


def operation(name):
    """Register a function under a name."""

    def register(fn):
        assert name not in OPERATIONS
        OPERATIONS[name] = fn
        return fn

    return register


def numbers(shape, k, like, low=0.4, high=1.2):
    """Constants that depend on k only."""
    return jnp.asarray(np.random.RandomState(k).uniform(low, high, shape), like.dtype)


def axis_of(v, k):
    return k % v.ndim


def whole(values):
    """An index array of 32 bits, with and without 64-bit types."""
    return jnp.asarray(np.asarray(values), jnp.int32)


def fitted(v, shape):
    """The numbers of v in another shape, repeated or truncated."""
    return jnp.resize(v, shape)


def matrix(v, rows=3, columns=3):
    """A well-conditioned matrix."""
    return 0.3 * jnp.sin(fitted(v, (rows, columns))) + 1.5 * jnp.eye(rows, columns, dtype=v.dtype)


def symmetric(v, rows=3):
    """A symmetric positive definite matrix with well separated eigenvalues."""
    a = 0.3 * jnp.sin(fitted(v, (rows, rows)))
    return a + a.T + jnp.diag(jnp.arange(2.0, 2.0 + 2 * rows, 2.0, dtype=v.dtype))


def positive(v):
    return 0.4 + v**2 / (1.0 + jnp.abs(v))


def unit(v):
    """Inside (-1, 1), away from the ends."""
    return 0.8 * jnp.tanh(v)


# --- elementwise ---

ELEMENTWISE = {
    "sin": jnp.sin,
    "square": lambda v: 0.5 * v**2,
    "divided by": lambda v: 1.0 / (2.0 + v**2),
    "erf": jsp.special.erf,
    "erfc": jsp.special.erfc,
    "erfinv": lambda v: jsp.special.erfinv(unit(v)),
    "gammaln": lambda v: jsp.special.gammaln(positive(v)),
    "digamma": lambda v: jsp.special.digamma(1.0 + positive(v)),
    "polygamma": lambda v: jsp.special.polygamma(1, 1.0 + positive(v)),
    "zeta": lambda v: jsp.special.zeta(2.5, 1.0 + positive(v)),
    "bessel i0e": lambda v: jsp.special.i0e(0.3 + v),
    "bessel i1e": lambda v: jsp.special.i1e(0.3 + v),
    "bessel i0": lambda v: jsp.special.i0(0.3 + unit(v)),
    "xlogy": lambda v: jsp.special.xlogy(v, positive(v)),
    "xlog1py": lambda v: jsp.special.xlog1py(v, positive(v)),
    "entr": lambda v: jsp.special.entr(positive(v)),
    "log ndtr": jsp.special.log_ndtr,
    "ndtr": jsp.special.ndtr,
    "ndtri": lambda v: jsp.special.ndtri(0.5 + 0.4 * jnp.tanh(v)),
    "logit": lambda v: jsp.special.logit(0.5 + 0.4 * jnp.tanh(v)),
    "expm1": lambda v: jnp.expm1(unit(v)),
    "log1p": lambda v: jnp.log1p(positive(v)),
    "sinc": jnp.sinc,
    "cbrt": lambda v: jnp.cbrt(positive(v)),
    "rsqrt": lambda v: lax.rsqrt(positive(v)),
    "sqrt": lambda v: jnp.sqrt(positive(v)),
    "log": lambda v: jnp.log(positive(v)),
    "exp2": lambda v: jnp.exp2(unit(v)),
    "tan": lambda v: jnp.tan(unit(v)),
    "arcsin": lambda v: jnp.arcsin(unit(v)),
    "arccos": lambda v: jnp.arccos(unit(v)),
    "arctan": jnp.arctan,
    "sinh": lambda v: jnp.sinh(unit(v)),
    "cosh": lambda v: jnp.cosh(unit(v)),
    "arcsinh": jnp.arcsinh,
    "arccosh": lambda v: jnp.arccosh(1.2 + positive(v)),
    "arctanh": lambda v: jnp.arctanh(unit(v)),
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "gelu of erf": lambda v: jax.nn.gelu(v, approximate=False),
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu squared": lambda v: jax.nn.relu(v) ** 2,
    "relu6": jax.nn.relu6,
    "celu": jax.nn.celu,
    "log sigmoid": jax.nn.log_sigmoid,
    "sigmoid": jax.nn.sigmoid,
    "leaky relu": jax.nn.leaky_relu,
    "cubed inverse": lambda v: positive(v) ** -3,
    "power 0": lambda v: v**0 + 0.5 * v**3,
    "real power": lambda v: positive(v) ** 1.7,
    "absolute": lambda v: jnp.abs(v - 0.01),
    "round": lambda v: v - 0.3 * jnp.round(2.0 * v),
    "floor": lambda v: v * (1.0 + 0.1 * jnp.floor(3.0 * v)),
    "ceil": lambda v: v + 0.1 * jnp.ceil(3.0 * v),
    "sign": lambda v: v**2 * jnp.sign(v - 0.4),
    "clip": lambda v: jnp.clip(v**2, 0.2, 0.9),
    "clamp": lambda v: lax.clamp(jnp.asarray(-0.7, v.dtype), v * jnp.abs(v), jnp.asarray(0.8, v.dtype)),
    "modulo": lambda v: jnp.mod(3.0 * v, 1.0) ** 2,
    "remainder": lambda v: lax.rem(3.0 * v, jnp.full_like(v, 0.7)),
    "stop gradient": lambda v: v * lax.stop_gradient(jnp.cos(v)) + v**2,
    "nan to num": lambda v: jnp.nan_to_num(v**2),
    "reduce precision": lambda v: jnp.sin(v) * lax.stop_gradient(lax.reduce_precision(v, 8, 10)),
    "double where": lambda v: jnp.where(v > 0.5, jnp.sqrt(jnp.where(v > 0.5, v - 0.4, 1.0)), v**2),
    "heaviside": lambda v: v * jnp.heaviside(v - 0.5, 0.5),
    "three cases": lambda v: lax.select_n(jnp.int32(v > 0.3) + jnp.int32(v > 0.9), v, v**2, jnp.sin(v)),
    "select": lambda v: jnp.select([v < 0.3, v < 0.8], [v**3, jnp.cos(v)], v),
    "piecewise": lambda v: jnp.piecewise(v, [v < 0.5], [lambda a: a**2, lambda a: 0.5 * a]),
    "logical mask": lambda v: jnp.where(jnp.logical_xor(v > 0.2, v > 0.7) & ~(v > 1.1), v**2, -v),
    "polyval": lambda v: jnp.polyval(jnp.asarray([0.1, -0.3, 0.5, 0.2], v.dtype), v),
    "rational": lambda v: (v**3 - v) / (1.0 + v**4),
    "log add exp": lambda v: jnp.logaddexp(v, 1.0 - v),
    "log add exp 2": lambda v: jnp.logaddexp2(v, 1.0 - 2.0 * v),
    "logistic": lax.logistic,
    "deg2rad": lambda v: jnp.sin(jnp.deg2rad(60.0 * v)),
    "copysign": lambda v: jnp.copysign(positive(v), v),
    "frexp": lambda v: v * jnp.ldexp(jnp.ones_like(v), 1),
}
for _name, _fn in ELEMENTWISE.items():
    operation(_name)(lambda v, k, fn=_fn: fn(v))

# --- two operands ---

BINARY = {
    "atan2": lambda a, b: jnp.arctan2(a, positive(b)),
    "hypot": lambda a, b: jnp.hypot(a, 0.2 + b),
    "power": lambda a, b: jnp.power(positive(a), unit(b)),
    "traced exponent": lambda a, b: positive(a) ** b.ravel()[0],
    "maximum": lambda a, b: jnp.maximum(a, 0.9 * b) ** 2,
    "minimum": lambda a, b: jnp.minimum(a, 0.9 * b) ** 2,
    "quotient": lambda a, b: a / positive(b),
    "product": lambda a, b: a * b,
    "cosine of difference": lambda a, b: jnp.cos(a - 2.0 * b),
    "betaln": lambda a, b: jsp.special.betaln(positive(a), positive(b)),
    "rel entr": lambda a, b: jsp.special.rel_entr(positive(a), positive(b)),
    "kl div": lambda a, b: jsp.special.kl_div(positive(a), positive(b)),
    "multigammaln": lambda a, b: jsp.special.multigammaln(2.0 + positive(a), 2) * b,
    "binary where": lambda a, b: jnp.where(a > b, a**2, a * b),
    "norm pdf": lambda a, b: jsp.stats.norm.logpdf(a, b, 1.3),
    "fmod": lambda a, b: jnp.fmod(2.0 * a, positive(b)),
    "complex magnitude": lambda a, b: jnp.abs(lax.complex(a, 0.3 + b)),
    "complex angle": lambda a, b: jnp.angle(lax.complex(positive(a), b)),
    "complex product": lambda a, b: jnp.imag(lax.complex(a, b) ** 2 * jnp.conj(lax.complex(b, a))),
    "complex exponential": lambda a, b: jnp.real(jnp.exp(1j * a) * b),
    "complex logarithm": lambda a, b: jnp.imag(jnp.log(lax.complex(positive(a), b))),
    "complex quotient": lambda a, b: jnp.real(1.0 / lax.complex(positive(a), b)),
    "complex square root": lambda a, b: jnp.real(jnp.sqrt(lax.complex(positive(a), b))),
}
for _name, _fn in BINARY.items():
    operation(_name)(lambda v, k, fn=_fn: fn(v, jnp.roll(jnp.flip(v.ravel()), k).reshape(v.shape) if k % 3 else jnp.cos(v)))

# --- indexing ---

_MODES = ("clip", "fill", "drop", "promise_in_bounds")


def indices(v, k, mode, count, different=False):
    """Row indices of v: in bounds if the mode promises it, and distinct if `different`."""
    n = v.shape[0]
    rng = np.random.RandomState(k)
    if different:
        return whole(rng.permutation(n if mode in ("clip", "promise_in_bounds") else n + 2)[: min(count, n)])
    low, high = (0, n) if mode == "promise_in_bounds" else (-n - 1, n + 2)
    return whole(rng.randint(low, high, size=count))


def _get(v, k, mode):
    return v.at[indices(v, k, mode, 3)].get(mode=mode, fill_value=0.3)


def _update(v, k, mode, name):
    different = name in ("multiply", "divide", "power")  # JAX cannot differentiate these if rows repeat
    rows = indices(v, k, mode, 3, different)
    u = 0.9 + 0.4 * jnp.sin(fitted(jnp.flip(v.ravel()), (rows.size, *v.shape[1:])))
    v = jnp.abs(0.2 + v) if name == "power" else v
    if name in ("max", "min"):
        # Copies of entries: JAX's rule compares the updates with the result, and XLA may round computed updates differently in
        # the two places, which makes JAX's own Hessian wrong.
        u = fitted(jnp.flip(v.ravel()), u.shape)
    return getattr(v.at[rows], name)(u, mode=mode, unique_indices=different)


for _mode in _MODES:
    operation(f"get, {_mode}")(functools.partial(_get, mode=_mode))
    for _name in ("set", "add", "subtract", "multiply", "divide", "power", "min", "max"):
        operation(f"{_name} at, {_mode}")(functools.partial(_update, mode=_mode, name=_name))


@operation("scalar index out of bounds")
def _(v, k):
    name = ("max", "min", "add", "set")[k % 4]
    return getattr(v.at[whole(v.shape[0] + k % 2)], name)(v[0] ** 2, mode="drop")


@operation("batched indices")
def _(v, k):
    rows = whole(np.random.RandomState(k).randint(-1, v.shape[0] + 1, size=(2, 2)))
    return jax.vmap(lambda i: v.at[i].max(0.5 * v[i], mode="drop"))(rows)


@operation("columns at")
def _(v, k):
    v = v.reshape(v.shape[0], -1)
    return v.at[:, whole([k % v.shape[1], v.shape[1]])].add(v[:, :1], mode="drop")


@operation("take along axis")
def _(v, k):
    return jnp.take_along_axis(v, jnp.argsort(v, axis=axis_of(v, k)), axis=axis_of(v, k))


@operation("put along axis")
def _(v, k):
    axis = axis_of(v, k)
    return jnp.put_along_axis(v, jnp.argmax(v, axis=axis, keepdims=True), 0.5, axis=axis, inplace=False) * v


@operation("entry at the largest")
def _(v, k):
    return v * v.ravel()[jnp.argmax(v)] + v.ravel()[jnp.argmin(v)] ** 2


@operation("traced slice")
def _(v, k):
    start = jnp.argmax(v.ravel()) % v.shape[0]
    return lax.dynamic_slice_in_dim(v, start, max(1, v.shape[0] - 1), 0)


@operation("traced update")
def _(v, k):
    start = jnp.argmin(v.ravel()) % v.shape[0]
    return lax.dynamic_update_slice_in_dim(v, jnp.sin(v[: max(1, v.shape[0] - 1)]), start - 1, 0)


@operation("batched traced slices")
def _(v, k):
    starts = whole(np.random.RandomState(k).randint(-1, v.shape[0] + 1, size=3))
    return jax.vmap(lambda s: lax.dynamic_slice_in_dim(v, s, 1, 0)[0])(starts)


@operation("traced row")
def _(v, k):
    return lax.dynamic_index_in_dim(v, jnp.argmax(v.ravel()) % v.shape[0], 0) * v


@operation("traced roll")
def _(v, k):
    return jnp.roll(v, jnp.argmax(v.ravel()), 0) * v


@operation("search sorted")
def _(v, k):
    table = jnp.linspace(0.0, 1.5, 5, dtype=v.dtype)
    return v * table[jnp.clip(jnp.searchsorted(table, lax.stop_gradient(v)), 0, 4)]


@operation("interpolation")
def _(v, k):
    knots = jnp.linspace(-1.0, 2.0, 5, dtype=v.dtype)
    return jnp.interp(v, knots, jnp.sin(knots + v.ravel()[0]))


@operation("digitize")
def _(v, k):
    bins = jnp.digitize(lax.stop_gradient(v), jnp.asarray([0.2, 0.6, 0.9], v.dtype))
    return v * numbers((4,), k, v)[bins]


def _segments(name):
    def run(v, k):
        groups = whole(np.random.RandomState(k).randint(-1, 4, size=v.shape[0]))
        found = getattr(jax.ops, name)(v, groups, num_segments=3)
        return jnp.where(jnp.isfinite(found), found, 0.0)

    return run


for _name in ("segment_sum", "segment_min", "segment_max"):  # JAX cannot differentiate "segment_prod"
    operation(_name)(_segments(_name))


@operation("unravel index")
def _(v, k):
    return v * v[jnp.unravel_index(jnp.argmax(v), v.shape)]


@operation("windows at the same indices")
def _(v, k):
    v, rows = v.ravel(), whole([[k % v.size], [v.size + 1]])
    numbers = lax.ScatterDimensionNumbers((1,), (), (0,))
    write = lambda count, mode: lax.scatter(
        v, rows, 0.5 * jnp.sin(fitted(v, (2, count))), numbers, unique_indices=True, mode=mode
    )
    counts = (1, min(2, v.size))
    modes = ("drop", "clip") if v.size > 3 and k % v.size < 2 else ("drop", "drop")  # windows must not overlap
    return write(counts[0], modes[0]) * write(counts[1], modes[1])


@operation("nonzero of a fixed size")
def _(v, k):
    (rows,) = jnp.nonzero(v.ravel() > 0.5, size=3, fill_value=v.size)
    return v.ravel().at[rows].get(mode="fill", fill_value=0.2)


@operation("boolean mask")
def _(v, k):
    return v[np.arange(v.shape[0]) % 2 == 0]


@operation("one hot")
def _(v, k):
    return jax.nn.one_hot(jnp.argmax(v.ravel()), 3, dtype=v.dtype) * v.ravel()[0] ** 2


@operation("scattered into zeros")
def _(v, k):
    rows = whole(np.random.RandomState(k).randint(0, v.shape[0] + 1, size=v.shape[0]))
    return jnp.zeros_like(v).at[rows].add(v**2, mode="drop")


# --- order ---

operation("sort")(lambda v, k: jnp.sort(v, axis=axis_of(v, k)))
operation("sort descending")(lambda v, k: jnp.sort(v, axis=axis_of(v, k), descending=True))
operation("argsort")(lambda v, k: v.ravel()[jnp.argsort(v.ravel())[: 1 + k % 4]])
operation("sort of two")(lambda v, k: lax.sort((v, jnp.sin(v) * numbers(v.shape, k, v)), dimension=axis_of(v, k))[1])
operation("sort by two keys")(
    lambda v, k: lax.sort((jnp.round(2.0 * v), v, v**2), dimension=axis_of(v, k), num_keys=2)[2] + 0.1 * jnp.sum(v)
)
operation("top k")(lambda v, k: lax.top_k(v.ravel(), min(3, v.size))[0])
operation("top k of rows")(lambda v, k: lax.top_k(v, 1 + (k % 2 if v.shape[-1] > 1 else 0))[0] ** 2)
operation("top k indices")(lambda v, k: v.ravel()[lax.top_k(-v.ravel(), min(2, v.size))[1]] * jnp.sum(v))
operation("median")(lambda v, k: v * jnp.median(v, axis=axis_of(v, k), keepdims=True))
operation("quantile")(lambda v, k: jnp.quantile(v, jnp.asarray([0.3, 0.8], v.dtype), axis=axis_of(v, k)))
operation("partition")(lambda v, k: jnp.partition(v.ravel(), v.size // 2) ** 2)
operation("lexsort")(lambda v, k: v.ravel()[jnp.lexsort((v.ravel(), jnp.round(v.ravel())))] * jnp.cos(v.ravel()))
operation("rank by argsort twice")(lambda v, k: v.ravel() * jnp.argsort(jnp.argsort(v.ravel())).astype(v.dtype))

# --- cumulative and windows ---

for _name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    for _reverse in (False, True):
        operation(_name + (", reverse" if _reverse else ""))(
            lambda v, k, name=_name, reverse=_reverse: getattr(lax, name)(jnp.sin(v), axis=axis_of(v, k), reverse=reverse)
        )


def _window(initial, fn):
    def run(v, k):
        v = v.reshape(v.shape[0], -1)
        padding = ((0, 1), (1, 0)) if k % 2 else "SAME"
        strides = (1, 1) if k % 3 else (2, 1)
        return lax.reduce_window(v, np.asarray(initial, v.dtype)[()], fn, (2, min(2, v.shape[1])), strides, padding)

    return run


operation("window sums")(_window(0.0, lax.add))
operation("window maxima")(lambda v, k: jnp.nan_to_num(_window(-np.inf, lax.max)(v, k), neginf=0.0))
operation("window minima")(lambda v, k: jnp.nan_to_num(_window(np.inf, lax.min)(v, k), posinf=0.0))


@operation("average pool")
def _(v, k):
    v = v.reshape(-1)
    sums = lax.reduce_window(v, np.asarray(0.0, v.dtype)[()], lax.add, (3,), (2,), "SAME")
    counts = lax.reduce_window(jnp.ones_like(v), np.asarray(0.0, v.dtype)[()], lax.add, (3,), (2,), "SAME")
    return sums / counts


@operation("dilated window sums")
def _(v, k):
    v = v.reshape(-1)
    zero = np.asarray(0.0, v.dtype)[()]
    return lax.reduce_window(v, zero, lax.add, (2,), (1,), ((2, 1),), base_dilation=(2,), window_dilation=(2,))


# --- convolutions ---


def _convolution(**options):
    def run(v, k):
        groups = options.get("feature_group_count", 1)
        batches = options.get("batch_group_count", 1)
        image = fitted(jnp.sin(v), (2, 2, 3, 3))
        kernel = numbers((2, 2 // groups, 2, 2), k, v)
        kernel = kernel * (jnp.cos(fitted(v, kernel.shape)) if k % 2 else 1.0)
        assert batches in (1, 2)
        return lax.conv_general_dilated(image, kernel, **{"window_strides": (1, 1), "padding": "VALID"} | options)

    return run


operation("convolution")(_convolution())
operation("convolution, same")(_convolution(padding="SAME"))
operation("convolution, strides")(_convolution(window_strides=(2, 1), padding=((1, 1), (0, 2))))
operation("convolution, dilated image")(_convolution(lhs_dilation=(2, 1), padding=((0, 0), (1, -1))))
operation("convolution, dilated kernel")(_convolution(rhs_dilation=(2, 2)))
operation("convolution, feature groups")(_convolution(feature_group_count=2))
operation("convolution, batch groups")(_convolution(batch_group_count=2))


@operation("transposed convolution")
def _(v, k):
    image, kernel = fitted(v, (1, 3, 2)), numbers((2, 2, 2), k, v)
    return lax.conv_transpose(image, kernel, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))


operation("jnp.convolve")(lambda v, k: jnp.convolve(v.ravel(), numbers((3,), k, v), mode=("full", "same", "valid")[k % 3]))
operation("autoconvolution")(lambda v, k: jnp.convolve(v.ravel(), jnp.cos(v.ravel()), mode="same"))
operation("jnp.correlate")(lambda v, k: jnp.correlate(v.ravel(), numbers((2,), k, v), mode="same"))

# --- linear algebra ---

operation("solve")(lambda v, k: jnp.linalg.solve(matrix(v), fitted(v, (3, 2))))
operation("solve vector")(lambda v, k: jnp.linalg.solve(matrix(v), fitted(jnp.cos(v), (3,))))
operation("batched solve")(lambda v, k: jnp.linalg.solve(jnp.stack([matrix(v), matrix(v).T]), fitted(v, (2, 3, 1))))
operation("inverse")(lambda v, k: jnp.linalg.inv(matrix(v)))
operation("determinant")(lambda v, k: jnp.linalg.det(matrix(v))[None])
operation("batched determinant")(lambda v, k: jnp.linalg.det(jnp.stack([matrix(v), 0.5 * matrix(v).T])))
operation("log determinant")(lambda v, k: v + jnp.linalg.slogdet(matrix(v))[1])
operation("cholesky")(lambda v, k: jnp.linalg.cholesky(symmetric(v)))
operation("cholesky solve")(lambda v, k: jsp.linalg.cho_solve(jsp.linalg.cho_factor(symmetric(v)), fitted(v, (3, 1))))
operation("eigenvalues")(lambda v, k: jnp.linalg.eigvalsh(symmetric(v)))
operation("eigenvectors")(lambda v, k: jnp.square(jnp.linalg.eigh(symmetric(v))[1]))
operation("singular values")(lambda v, k: jnp.linalg.svd(symmetric(v), compute_uv=False))
operation("qr")(lambda v, k: jnp.square(jnp.linalg.qr(matrix(v))[1]))
operation("triangular solve")(
    lambda v, k: jsp.linalg.solve_triangular(matrix(v), fitted(v, (3, 2)), lower=bool(k % 2), trans=(k // 2) % 2)
)
operation("unit triangular solve")(
    lambda v, k: lax.linalg.triangular_solve(matrix(v), fitted(v, (2, 3)), left_side=False, unit_diagonal=True)
)
operation("matrix exponential")(lambda v, k: jsp.linalg.expm(0.3 * matrix(v)))
operation("least squares")(lambda v, k: jnp.linalg.lstsq(matrix(v, 4, 3), fitted(v, (4,)))[0])
operation("pseudoinverse")(lambda v, k: jnp.linalg.pinv(matrix(v, 4, 3)))
operation("matrix power")(lambda v, k: jnp.linalg.matrix_power(0.5 * matrix(v), 3))
operation("multi dot")(lambda v, k: jnp.linalg.multi_dot([matrix(v, 2, 3), matrix(v, 3, 4), matrix(jnp.cos(v), 4, 2)]))
operation("lu")(lambda v, k: jsp.linalg.lu_factor(matrix(v))[0])
operation("tridiagonal solve")(
    lambda v, k: lax.linalg.tridiagonal_solve(
        0.3 * fitted(v, (4,)).at[0].set(0.0), 2.0 + fitted(v, (4,)) ** 2, 0.2 * fitted(jnp.cos(v), (4,)).at[3].set(0.0),
        fitted(v, (4, 1)),
    )
)  # fmt: skip
operation("trace")(lambda v, k: v * jnp.trace(matrix(v) @ matrix(jnp.cos(v))))
operation("cross product")(lambda v, k: jnp.cross(fitted(v, (2, 3)), fitted(jnp.cos(v), (2, 3))))
operation("kronecker")(lambda v, k: jnp.kron(fitted(v, (2, 2)), fitted(jnp.sin(v), (1, 2))))
operation("conjugate gradients")(
    lambda v, k: jsp.sparse.linalg.cg(lambda b: symmetric(v) @ b, fitted(v, (3,)), tol=1e-13, maxiter=12)[0]
)

# --- fourier ---


def _parts(z, k):
    return (jnp.real, jnp.imag, lambda z: jnp.real(z * jnp.conj(z)))[k % 3](z)


operation("fft")(lambda v, k: _parts(jnp.fft.fft(v, axis=axis_of(v, k)), k))
operation("ifft")(lambda v, k: _parts(jnp.fft.ifft(v, axis=axis_of(v, k)), k))
operation("rfft")(lambda v, k: _parts(jnp.fft.rfft(v, axis=axis_of(v, k)), k))
operation("irfft")(lambda v, k: jnp.fft.irfft(v, n=2 + k % 4, axis=axis_of(v, k)))
operation("irfft of rfft")(lambda v, k: jnp.fft.irfft(jnp.fft.rfft(v.ravel()) * jnp.exp(1j * v.ravel()[0]), n=v.size))
operation("fft2")(lambda v, k: _parts(jnp.fft.fft2(v.reshape(v.shape[0], -1)), k))
operation("ifft2")(lambda v, k: _parts(jnp.fft.ifft2(v.reshape(v.shape[0], -1)), k))
operation("fftshift")(lambda v, k: jnp.fft.fftshift(v) * v)
operation("fft of complex")(lambda v, k: jnp.abs(jnp.fft.fft(jnp.exp(1j * v.ravel()) + 2.0)))
operation("dct")(lambda v, k: jsp.fft.dct(v.ravel()))

# --- control flow ---


@operation("cond")
def _(v, k):
    return lax.cond(jnp.sum(v) > 0.0, lambda a: 0.5 * a**2, lambda a: jnp.flip(a, 0), v)


@operation("batched cond")
def _(v, k):
    return jax.vmap(lambda a: lax.cond(jnp.sum(a) > 0.8, lambda b: b**2, lambda b: jnp.sin(b) * k, a))(v)


@operation("switch")
def _(v, k):
    return lax.switch(k % 4, [jnp.sin, lambda a: a**2, lambda a: 0.5 * a], v)


@operation("batched switch")
def _(v, k):
    which = whole(np.random.RandomState(k).randint(-1, 4, size=v.shape[0]))
    return jax.vmap(lambda i, a: lax.switch(i, [jnp.sin, lambda b: b**2, lambda b: b * jnp.sum(b)], a))(which, v)


@operation("scan")
def _(v, k):
    return lax.scan(lambda s, row: (0.5 * s + jnp.sin(row), s * row), jnp.zeros(v.shape[1:], v.dtype), v)[1]


@operation("reverse scan")
def _(v, k):
    return lax.scan(lambda s, row: (s * row + 0.5, s**2), 0.2 * v[0], v, reverse=True)[1]


@operation("unrolled scan")
def _(v, k):
    return lax.scan(lambda s, row: (jnp.tanh(s + row), s), v[0], v, unroll=2)[0]


@operation("scan with cond")
def _(v, k):
    def step(s, row):
        s = lax.cond(jnp.sum(row) > 0.7, lambda a: jnp.sin(a) + row, lambda a: 0.5 * a * row, s)
        return s, s

    return lax.scan(step, v[0], v)[1]


@operation("scan of counters")
def _(v, k):
    def step(carry, row):
        count, s = carry
        return (count + 1, s + row * v[jnp.minimum(count, v.shape[0] - 1)]), s

    return lax.scan(step, (jnp.int32(0), v[0]), v)[1]


@operation("scan in scan")
def _(v, k):
    inner = lambda s, a: (s * 0.5 + a, s * a)
    outer = lambda s, row: (s + jnp.sum(row), lax.scan(inner, s, row.ravel())[1])
    return lax.scan(outer, v.ravel()[0], v)[1]


@operation("for loop")
def _(v, k):
    return lax.fori_loop(0, 3, lambda i, a: jnp.sin(a) + 0.1 * a * a[i % a.shape[0]], v)


@operation("for loop with updates")
def _(v, k):
    return lax.fori_loop(0, min(3, v.shape[0]), lambda i, a: a.at[i].set(a[i] * a[-1]), v)


@operation("map")
def _(v, k):
    return lax.map(lambda row: row * jnp.sum(row**2), v)


@operation("associative scan")
def _(v, k):
    return lax.associative_scan(lambda a, b: a * b + 0.1 * a, jnp.sin(v), reverse=bool(k % 2))


@operation("custom root")
def _(v, k):
    solve = lambda g, y: y / g(jnp.ones_like(y))
    newton = lambda f, a: functools.reduce(lambda a, _: a - f(a) / (1.0 + 3.0 * a**2), range(12), a)
    root = lambda c: lax.custom_root(lambda a: a + a**3 - c, jnp.zeros_like(c), newton, solve)
    return jax.vmap(root)(jnp.sin(v.ravel()))


@operation("custom linear solve")
def _(v, k):
    a = symmetric(v)
    return lax.custom_linear_solve(
        lambda b: a @ b, fitted(v, (3,)), lambda _, b: jnp.linalg.solve(lax.stop_gradient(a), b), symmetric=True
    )


# --- derivatives inside ---


def _potential(v):
    return jnp.sum(jnp.sin(v) * jnp.roll(v.ravel(), 1).reshape(v.shape)) + 0.1 * jnp.sum(v**3)


operation("gradient inside")(lambda v, k: jax.grad(_potential)(v))
operation("tangent inside")(lambda v, k: jax.jvp(jnp.sin, (v,), (v**2,))[1])
operation("cotangent inside")(lambda v, k: jax.vjp(lambda a: a * jnp.sum(a), v)[1](jnp.cos(v))[0])
operation("hessian inside")(lambda v, k: jax.hessian(_potential)(v.ravel()[:3]))
operation("jacobian inside")(lambda v, k: jax.jacfwd(lambda a: jnp.cumsum(jnp.sin(a)))(v.ravel()[:3]))
operation("reverse jacobian inside")(lambda v, k: jax.jacrev(lambda a: a * jnp.prod(a))(v.ravel()[:3]))
operation("product with a hessian inside")(lambda v, k: jax.jvp(jax.grad(_potential), (v,), (jnp.cos(v),))[1])
operation("linearised inside")(lambda v, k: jax.linearize(lambda a: jnp.tanh(a) * a, v)[1](v))
operation("transposed inside")(lambda v, k: jax.linear_transpose(lambda a: jnp.cumsum(2.0 * a.ravel()), v)(v.ravel() ** 2)[0])


@jax.custom_jvp
def _swish(v):
    return v * lax.logistic(v)


@_swish.defjvp
def _(primals, tangents):
    s = lax.logistic(primals[0])
    return primals[0] * s, (s + primals[0] * s * (1.0 - s)) * tangents[0]


@jax.custom_vjp
def _cube(v):
    return v**3


_cube.defvjp(lambda v: (v**3, v), lambda v, ct: (3.0 * v**2 * ct,))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _power_by_rule(v, p):
    return v**p


@_power_by_rule.defjvp
def _(p, primals, tangents):
    return primals[0] ** p, p * _power_by_rule(primals[0], p - 1) * tangents[0]


operation("custom jvp")(lambda v, k: _swish(v))
operation("batched custom jvp")(lambda v, k: jax.vmap(_swish)(v) * v)
operation("custom jvp with an argument")(lambda v, k: _power_by_rule(v, 3))
operation("custom vjp inside a gradient")(lambda v, k: jax.grad(lambda a: jnp.sum(_swish(a) * a))(v))
operation("checkpoint")(lambda v, k: jax.checkpoint(lambda a: jnp.sin(jnp.sin(a) * a))(v))
operation("checkpoint, policy")(
    lambda v, k: jax.checkpoint(
        lambda a: jnp.tanh(a.reshape(a.shape[0], -1) @ a.reshape(a.shape[0], -1).T),
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    )(v)
)
operation("checkpointed scan")(
    lambda v, k: lax.scan(jax.checkpoint(lambda s, a: (jnp.sin(s) + a, s * a)), jnp.zeros(v.shape[1:], v.dtype), v)[1]
)
operation("jit inside")(lambda v, k: jax.jit(lambda a: a * jnp.sum(jnp.cos(a)))(v))

# --- products ---


def _two(v):
    v = v.reshape(v.shape[0], -1)
    return v, jnp.cos(v)


operation("matmul")(lambda v, k: v @ numbers((v.shape[-1], 2 + k % 2), k, v))
operation("gram")(lambda v, k: (lambda a, b: a @ b.T)(*_two(v)))
operation("einsum to a trace")(lambda v, k: v * jnp.einsum("ij,ij->", *_two(v)))
operation("einsum of three")(lambda v, k: jnp.einsum("ij,kj,i->k", *_two(v), _two(v)[0][:, 0]))
operation("einsum with a diagonal")(lambda v, k: jnp.einsum("ii,ij->ij", matrix(v), matrix(jnp.cos(v))))
operation("batched dot")(
    lambda v, k: lax.dot_general(fitted(v, (2, 2, 3)), fitted(jnp.sin(v), (2, 3, 2)), (((2,), (1,)), ((0,), (0,))))
)
operation("dot over two axes")(
    lambda v, k: lax.dot_general(fitted(v, (2, 3, 2)), numbers((3, 2, 2), k, v), (((1, 2), (0, 1)), ((), ())))
)
operation("tensordot")(lambda v, k: jnp.tensordot(v, jnp.sin(v), axes=((v.ndim - 1,), (v.ndim - 1,))))
operation("outer")(lambda v, k: jnp.outer(v.ravel()[:4], jnp.sin(v.ravel()[:3])))
operation("inner")(lambda v, k: jnp.inner(v, jnp.cos(v)))
operation("vmapped axes")(lambda v, k: jax.vmap(lambda a, b: a * jnp.sum(b), in_axes=(v.ndim - 1, None), out_axes=-1)(v, v))
operation("vmap over two")(lambda v, k: jax.vmap(jax.vmap(jnp.multiply, (0, None)), (None, 0))(v.ravel()[:3], v.ravel()[:4]))
operation("vectorize")(lambda v, k: jnp.vectorize(lambda a, b: a @ b, signature="(n),(n)->()")(v, jnp.sin(v))[None])
operation("differences")(lambda v, k: v.ravel()[:5][:, None] - v.ravel()[:5][None])
operation("pair distances")(
    lambda v, k: jnp.sqrt(0.1 + jnp.sum((fitted(v, (4, 1, 3)) - fitted(jnp.sin(v), (1, 4, 3))) ** 2, axis=-1))
)

# --- shapes ---

operation("ravel")(lambda v, k: v.ravel())
operation("fold")(lambda v, k: v.reshape(-1, 2) if v.size % 2 == 0 else v.reshape(1, -1))
operation("fortran order")(lambda v, k: v.reshape(-1, 2, order="F") if v.size % 2 == 0 else v.T)
operation("transpose")(lambda v, k: jnp.moveaxis(v, 0, -1) * 1.0)
operation("pad")(lambda v, k: _padded(v, k, [(1, 0, 1), (-1, 2, 0), (0, -1, 2), (2, 1, 0)][k % 4]))
operation("pad with x")(lambda v, k: lax.pad(v, v.ravel()[0] ** 2, [(1, 0, 1)] + [(0, 0, 0)] * (v.ndim - 1)))
operation("reflected")(lambda v, k: jnp.pad(v.ravel(), (min(1, v.size - 1), 0), mode="reflect"))
operation("wrapped")(lambda v, k: jnp.pad(v.ravel(), (1, 2), mode="wrap"))
operation("edges")(lambda v, k: jnp.pad(v.ravel(), (2, 1), mode="edge") ** 2)
operation("concatenate")(lambda v, k: jnp.concatenate([v, v * 0.5, jnp.flip(v, 0)], axis=0))
operation("concatenate with nothing")(lambda v, k: jnp.concatenate([v[:0], jnp.sin(v), v[:0]], axis=0))
operation("stack")(lambda v, k: jnp.stack([v, v**2], axis=k % (v.ndim + 1)))
operation("split")(lambda v, k: jnp.split(v, [1], axis=0)[0] * jnp.sum(jnp.split(v, [1], axis=0)[-1]))
operation("size 0")(lambda v, k: v + jnp.sum(v[:0] ** 2) + jnp.prod(v[:0]))
operation("size 1")(lambda v, k: v[:1][:, None] ** 2)
operation("tile")(lambda v, k: jnp.tile(v, (2,) + (1,) * (v.ndim - 1)))
operation("repeat")(lambda v, k: jnp.repeat(v, 2, axis=axis_of(v, k)))
operation("repeat unevenly")(lambda v, k: jnp.repeat(v, np.arange(v.shape[0]) % 3, axis=0, total_repeat_length=v.shape[0]))
operation("strided")(lambda v, k: v[k % 2 :: 2] if v.shape[0] > 2 else v)
operation("backwards")(lambda v, k: v[::-2] * v[0])
operation("roll")(lambda v, k: jnp.roll(v, k % 3, axis_of(v, k)) * v)
operation("rot90")(lambda v, k: jnp.rot90(v.reshape(v.shape[0], -1), k % 4))
operation("lower triangle")(lambda v, k: jnp.tril(v.reshape(v.shape[0], -1), k % 3 - 1))
operation("upper triangle")(lambda v, k: jnp.triu(fitted(v, (3, 3)), k % 3 - 1))
operation("triangle indices")(lambda v, k: matrix(v)[jnp.tril_indices(3)])
operation("diagonal matrix")(lambda v, k: jnp.diag(v.ravel()[:4], k % 3 - 1))
operation("meshgrid")(lambda v, k: jnp.multiply(*jnp.meshgrid(v.ravel()[:3], jnp.sin(v.ravel()[:2]))))
operation("vander")(lambda v, k: jnp.vander(v.ravel()[:3], 3))
operation("broadcast")(lambda v, k: jnp.broadcast_to(v[:1], v.shape) * v)
operation("column")(lambda v, k: v[..., k % v.shape[-1]])
operation("shifted")(lambda v, k: v[1:] * v[:-1] if v.shape[0] > 1 else v)
operation("cast there and back")(lambda v, k: v.astype(jnp.float32).astype(v.dtype) * v if k % 2 else v * 1.0)


def _padded(v, k, amounts):
    config = [(0, 0, 0)] * v.ndim
    config[axis_of(v, k)] = amounts
    return lax.pad(v, jnp.asarray(0.3, v.dtype), config)


# --- reductions ---

operation("sum")(lambda v, k: jnp.sum(v, axis=axis_of(v, k)))
operation("masked sum")(lambda v, k: jnp.sum(v**2, axis=axis_of(v, k), where=v > 0.4))
operation("prod")(lambda v, k: jnp.prod(v, axis=axis_of(v, k)))
operation("prod of all")(lambda v, k: v + jnp.prod(0.5 + v))
operation("prod with a zero")(lambda v, k: jnp.cumprod(v.ravel().at[0].multiply(0.0)) + jnp.prod(v.ravel().at[-1].set(0.0)))
operation("max")(lambda v, k: v * jnp.max(v, axis=axis_of(v, k), keepdims=True))
operation("min")(lambda v, k: v * jnp.min(v, axis=axis_of(v, k), keepdims=True))
operation("masked max")(lambda v, k: jnp.max(v, axis=axis_of(v, k), where=v < 0.9, initial=-0.5) ** 2)
operation("mean")(lambda v, k: v**2 - jnp.mean(v, axis=axis_of(v, k), keepdims=True))
operation("variance")(lambda v, k: v * jnp.var(v, axis=axis_of(v, k), keepdims=True))
operation("deviation")(lambda v, k: v * jnp.sqrt(0.1 + jnp.var(v, axis=axis_of(v, k), keepdims=True)))
operation("standardised")(lambda v, k: (v - jnp.mean(v)) / jnp.std(jnp.concatenate([v.ravel(), numbers((2,), k, v)])))
operation("logsumexp")(lambda v, k: jsp.special.logsumexp(v, axis=axis_of(v, k), keepdims=True) * v)
operation("weighted logsumexp")(lambda v, k: v + jsp.special.logsumexp(v, b=numbers(v.shape, k, v)))
operation("softmax")(lambda v, k: jax.nn.softmax(v, axis=axis_of(v, k)))
operation("log softmax")(lambda v, k: jax.nn.log_softmax(v, axis=axis_of(v, k)))
operation("masked softmax")(lambda v, k: jax.nn.softmax(jnp.where(v > 0.3, v, -jnp.inf).at[0].set(0.1), axis=0))
operation("norm 2")(lambda v, k: v / (0.5 + jnp.linalg.norm(0.1 + v, axis=axis_of(v, k), keepdims=True)))
operation("norm 1")(lambda v, k: v * jnp.linalg.norm(v, ord=1, axis=axis_of(v, k), keepdims=True))
operation("norm 3")(lambda v, k: v * jnp.linalg.norm(0.2 + jnp.abs(v), ord=3, axis=axis_of(v, k), keepdims=True))
operation("norm inf")(lambda v, k: v * jnp.linalg.norm(v.ravel(), ord=jnp.inf))
operation("frobenius")(lambda v, k: jnp.linalg.norm(matrix(v), ord="fro") * v)
operation("nuclear norm")(lambda v, k: jnp.linalg.norm(symmetric(v), ord="nuc") * v)
operation("trapezoid")(lambda v, k: v + jnp.trapezoid(v.ravel() ** 2, dx=0.3))
operation("average")(lambda v, k: v * jnp.average(v, weights=numbers(v.shape, k, v)))
operation("covariance")(lambda v, k: jnp.cov(fitted(v, (2, 4)) * numbers((2, 4), k, v)))
operation("counted")(lambda v, k: v * jnp.sum(v > 0.5).astype(v.dtype))
operation("generic reduction")(lambda v, k: v * lax.reduce(v, np.asarray(1.0, v.dtype)[()], lax.mul, tuple(range(v.ndim))))
operation("peak to peak")(lambda v, k: v * jnp.ptp(v, axis=axis_of(v, k), keepdims=True))
operation("diff")(lambda v, k: jnp.diff(v.ravel(), n=1 + k % 2, prepend=numbers((2,), k, v)))
operation("gradient of samples")(lambda v, k: jnp.gradient(jnp.concatenate([v.ravel(), jnp.sin(v.ravel())])))
