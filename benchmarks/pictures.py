"""Draws the pictures of the README and the documentation, each as an SVG for light pages and one for dark pages.

  python benchmarks/pictures.py                          all pictures, into docs/images
  python benchmarks/pictures.py --only terms hessian     some of them

`growth` shows the results of `python benchmarks/growth.py`. The others are computed here, in a few seconds. A picture is a
function of a theme that returns a matplotlib figure.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from energies import lennard_jones
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
from matplotlib.figure import Figure
from objectives import cluster

import hessop
import hessop.modes
import hessop.optax
import hessop.plot
import hessop.scipy

ROOT = pathlib.Path(__file__).parents[1]
ISSUE = 2483  # particles in JAX issue #787


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours that read well on one kind of page.

    Attributes:
        name: "light" or "dark".
        text, muted, grid: for text and lines.
        ours, red, orange, grey: for curves.
        zero: for zero entries, in the colour map from negative to positive.
    """

    name: str
    text: str
    muted: str
    grid: str
    ours: str
    red: str
    orange: str
    grey: str
    zero: str

    @contextlib.contextmanager
    def applied(self):
        """Matplotlib's settings for figures of this theme."""
        words = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
        colours = dict.fromkeys(words, self.text)
        lines = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), self.muted)
        lines |= {"grid.color": self.grid, "grid.linewidth": 0.6, "lines.linewidth": 2}
        # No date and no random ids, so that the same picture gives the same file.
        files = {"svg.hashsalt": "hessop", "svg.fonttype": "path", "savefig.transparent": True}
        with mpl.rc_context(
            {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, **colours, **lines, **files}
        ):
            yield

    @property
    def signed(self):
        """A colour map from negative to positive."""
        return LinearSegmentedColormap.from_list("signed", [self.ours, self.zero, self.red])


LIGHT = Theme("light", "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#cf222e", "#bc4c00", "#59636e", "#f6f8fa")
DARK = Theme("dark", "#f0f6fc", "#9198a1", "#3d444d", "#58a6ff", "#ff7b72", "#ffa657", "#9198a1", "#21262d")


# --- time against N ---


def growth(theme, data):
    """Seconds for a dense Hessian against the number of particles."""
    part = json.loads(pathlib.Path(data).read_text())["parts"]["growth"]
    n = 3 * ISSUE
    styles = {  # name, colour, and offset of the name from the end of the curve, as two curves may meet there
        "jit(jax.hessian)": (f"jax.hessian:\n{n * n * ISSUE * 4 / 1e9:.0f} GB at N = {ISSUE}", theme.red, (-8, 12)),
        "column loop": ("one HVP per column", theme.orange, (-8, 0)),
        "materialize": ("hessop", theme.ours, (8, 5)),
        "handwritten": ("kernel written by hand", theme.grey, (8, -6)),
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for route, (name, colour, offset) in styles.items():
        rows = sorted((r["N"], r["seconds"]) for r in part["rows"] if r["route"] == route and "seconds" in r)
        sizes, seconds = zip(*rows, strict=True)
        axes.loglog(sizes, seconds, marker="o", markersize=4, color=colour, zorder=3 if name == "hessop" else 2)
        align = "left" if offset[0] > 0 else "right"
        end = (sizes[-1], seconds[-1])
        axes.annotate(name, end, offset, textcoords="offset points", ha=align, va="center", color=colour)
    axes.axvline(ISSUE, color=theme.grid, linewidth=1, linestyle="--", zorder=0)
    axes.annotate(f" N = {ISSUE}", (ISSUE, 0.01), xycoords=("data", "axes fraction"), color=theme.muted, size=8)
    axes.set(xlabel="particles N", ylabel="seconds for the dense 3N × 3N Hessian")
    axes.set_xlim(right=axes.get_xlim()[1] * 4)  # room for the names
    axes.grid(axis="y")
    machine = part["machine"]
    where = f"float32, {machine['cores']} CPU cores, JAX {machine['packages']['jax']}, {part['at'][:10]}, without compilation"
    axes.set_title(where, size=8, color=theme.muted, loc="left")
    return figure


# --- the four terms of a pair energy ---


def terms(theme, N=6):
    """The Hessian of a sum over pairs and the four terms it consists of."""
    x = np.random.RandomState(3).uniform(0, 1.6, (N, 3))
    d = x[:, None] - x[None]
    e = np.exp(-np.sum(d**2, axis=-1))
    particles, components = np.eye(N), np.eye(3)
    parts = {
        "dense": -8 * np.einsum("in,inc,ink->icnk", e, d, d),
        "same component": 4 * np.einsum("in,ck->icnk", e, components),
        "same particle": 8 * np.einsum("in,ij,ijc,ijk->icnk", particles, e, d, d),
        "both": -4 * np.einsum("in,ck,ij->icnk", particles, components, e),
    }
    whole = sum(parts.values())
    exact = jax.hessian(lambda x: jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))))(jnp.asarray(x))
    assert np.allclose(whole, exact, atol=1e-4)

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    panels = figure.subplots(1, 5)
    largest = max(np.max(np.abs(part)) for part in parts.values())
    norm = SymLogNorm(0.05 * largest, vmin=-largest, vmax=largest)
    labels = ("H", *parts)
    for axes, label, part, sign in zip(panels, labels, (whole, *parts.values()), ("", "=", "+", "+", "+"), strict=True):
        matrix = part.reshape(3 * N, 3 * N)
        axes.imshow(np.ma.masked_equal(matrix, 0), cmap=theme.signed, norm=norm, interpolation="none")
        axes.set_title(label, size=10)
        axes.text(-0.16, 0.5, sign, transform=axes.transAxes, ha="center", va="center", size=14)
        axes.set(xticks=np.arange(3, 3 * N, 3) - 0.5, yticks=np.arange(3, 3 * N, 3) - 0.5)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.grid()
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(theme.grid)
    return figure


# --- convergence of a minimisation ---


def minimise(theme, N=38):
    """The largest force of a Lennard-Jones cluster at each iteration of Newton-CG and of L-BFGS."""
    newton, lbfgs = _minimisations(N)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for (work, forces, negative), name, colour in ((lbfgs, "optax.lbfgs", theme.grey), (newton, "newton_cg", theme.ours)):
        steps = np.arange(len(forces))
        axes.semilogy(steps, forces, color=colour)
        label = f"{name}\n{work} gradient evaluations"
        axes.annotate(label, (steps[-1], forces[-1]), (6, 0), textcoords="offset points", va="center", color=colour)
        if any(negative):
            axes.semilogy(steps[negative], forces[negative], "o", color=theme.red, markersize=5, label="negative curvature")
    axes.set(xlabel="iteration", ylabel="largest force")
    axes.set_xlim(right=1.45 * axes.get_xlim()[1])
    axes.set_ylim(bottom=0.1 * axes.get_ylim()[0])
    axes.grid(axis="y")
    axes.legend(frameon=False)
    return figure


@functools.cache
def _minimisations(N):
    with jax.enable_x64(True):
        start = cluster(N).start
        return _forces(hessop.optax.newton_cg(), start, 100), _forces(optax.lbfgs(), start, 1000)


def _forces(solver, x, steps, tolerance=1e-10):
    """The work, in gradients (a product counts as two); the largest force at each iterate; where curvature was negative."""
    value_and_grad = optax.value_and_grad_from_state(lennard_jones)

    @jax.jit
    def iterate(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=lennard_jones)
        return optax.apply_updates(x, updates), state, jnp.max(jnp.abs(grad))

    def told(state, name, default):
        found = optax.tree.get(state, name)
        return default if found is None else float(found)

    state, work, rows = solver.init(x), 1, []
    for _ in range(steps):
        x, state, force = iterate(x, state)
        rows.append((float(force), np.isfinite(told(state, "curvature", np.inf))))
        if force < tolerance:
            break
        work += int(2 * told(state, "num_cg_steps", 0) + told(state, "num_linesearch_steps", 0))
    forces, negative = map(np.array, zip(*rows, strict=True))
    return work, forces, negative & (forces >= tolerance)


# --- a Hessian as an image ---


def hessian(theme):
    """The Hessians of a coiled polymer and of a small net, entry by entry."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    matrix = hessop.HessianOperator(_polymer, _coil(60)).materialize()
    _image(left, matrix, theme)
    left.set_title("a polymer in a coil: 60 particles, 180 unknowns", size=10)
    ends = np.arange(0, 61, 10)
    left.set(
        xticks=3 * ends - 0.5, yticks=3 * ends - 0.5, xticklabels=ends, yticklabels=ends, xlabel="particle", ylabel="particle"
    )

    params = _params(jax.random.key(1), (2, 12, 6, 1))
    _image(right, hessop.HessianOperator(_loss, params).materialize(), theme)
    leaves = [(f"{name}{layer}", leaf.size) for layer, arrays in enumerate(params, 1) for name, leaf in arrays.items()]
    names = [name if size > 1 else "" for name, size in leaves]
    edges = np.cumsum([0, *(size for _, size in leaves)])
    right.set_title(f"a small net: {edges[-1]} parameters", size=10)
    middles = (edges[1:] + edges[:-1]) / 2 - 0.5
    right.set(xticks=middles, yticks=middles, xticklabels=names, yticklabels=names)
    for edge in edges[1:-1] - 0.5:
        right.axhline(edge, color=theme.text, linewidth=0.8)
        right.axvline(edge, color=theme.text, linewidth=0.8)
    right.tick_params(length=0)
    return figure


def _image(axes, matrix, theme):
    matrix = np.asarray(matrix)
    largest = np.max(np.abs(matrix))
    norm = SymLogNorm(1e-3 * largest, vmin=-largest, vmax=largest)
    axes.imshow(matrix, cmap=theme.signed, norm=norm, interpolation="none")
    axes.spines[:].set_visible(False)


def _coil(N):
    """A helix of unit steps, ten particles per turn, with a little noise."""
    angle = 2 * np.pi * np.arange(N) / 10
    helix = np.stack([1.55 * np.cos(angle), 1.55 * np.sin(angle), 0.11 * np.arange(N)], axis=1)
    return jnp.asarray(helix + np.random.RandomState(0).normal(0, 0.02, helix.shape), jnp.float32)


def _polymer(x):
    """Springs along the chain, and Lennard-Jones between all particles."""
    lengths = jnp.sqrt(jnp.sum((x[1:] - x[:-1]) ** 2, axis=-1))
    return lennard_jones(x) + 50 * jnp.sum((lengths - 1.0) ** 2)


def _params(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"b": jnp.zeros(b), "w": jax.random.normal(k, (a, b)) / a**0.5}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _loss(params):
    inputs = jax.random.normal(jax.random.key(0), (64, 2))
    h = inputs
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"] + layer["b"])
    output = (h @ params[-1]["w"] + params[-1]["b"])[:, 0]
    return jnp.mean((output - jnp.prod(inputs, axis=1)) ** 2)


# --- spectra ---


def _example(name):
    """A script of `examples/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _themed(axes, theme):
    """Axes of `hessop.plot`, whose colours are for any page, with the lines of a theme."""
    for line in axes.lines:
        if line.get_color() == "#0072B2":
            line.set_color(theme.ours)
    axes.grid(axis="y")
    return axes.figure


def vibrations(theme):
    """The vibrational spectrum of benzene, from the force field of an example."""
    example = _example("molecular_vibrations")
    with jax.enable_x64(True):
        energy, positions, _ = example.benzene()
        x = hessop.scipy.minimize(energy, jnp.asarray(positions), options={"gtol": 1e-9}).x
        masses = jnp.asarray([12.011] * 6 + [1.008] * 6)
        modes = hessop.modes.normal_modes(hessop.HessianOperator(energy, x), masses)
    figure = Figure(figsize=(7, 3), layout="constrained")
    return _themed(hessop.plot.sticks(modes, ax=figure.subplots(), broadening=15.0), theme)


def bands(theme):
    """The phonon bands of argon, as in an example."""
    example = _example("argon_phonons")
    with jax.enable_x64(True):
        energy, sites, cell, primitive = example.crystal(4)
        path = [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0.5)), ("W", (0.5, 0.25, 0.75)), ("L", (0.5, 0.5, 0.5)), ("Γ", (0, 0, 0))]
        H, masses = hessop.HessianOperator(energy, sites), jnp.full(len(sites), 39.948)
        found = hessop.modes.band_structure(H, masses, path, cell=cell, primitive=primitive)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    return _themed(hessop.plot.bands(found, ax=figure.subplots()), theme)


def density(theme):
    """The density of the eigenvalues of a small net's Hessian."""
    H = hessop.HessianOperator(_loss, _params(jax.random.key(1), (2, 24, 24, 1)))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    found = hessop.spectral_density(H, samples=20, steps=60)
    return _themed(hessop.plot.density(found, ax=figure.subplots()), theme)


PICTURES = {
    "growth": growth,
    "terms": terms,
    "minimise": minimise,
    "hessian": hessian,
    "vibrations": vibrations,
    "bands": bands,
    "density": density,
}


def main():
    """Draw pictures in both themes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(PICTURES), default=list(PICTURES), metavar="NAME", help="default: all"
    )
    parser.add_argument("--data", default=ROOT / "benchmarks/results/growth.json", help="output of benchmarks/growth.py")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for theme in (LIGHT, DARK):
            with theme.applied():
                figure = growth(theme, options.data) if name == "growth" else PICTURES[name](theme)
                path = options.out / f"{name}-{theme.name}.svg"
                figure.savefig(path, metadata={"Date": None})
            print(path)


if __name__ == "__main__":
    main()
