"""What hessop costs on a GPU, against the alternatives, in one run of about five minutes.

    python benchmarks/gpu.py                 on a machine with one NVIDIA GPU and JAX for CUDA
    python benchmarks/gpu.py --quick         in about two minutes
    python benchmarks/gpu.py --size tiny     on any machine: this shows that the script works, and nothing else

All arrays are float32, and products of matrices are, too: TF32 is off. Errors are relative to the largest entry of the result
in float64, computed on the host. A row is left out, with the reason, if it would not fit in memory or in the time that is left.
`--out` takes the table as JSON, with the names and versions of everything. The last two parts print what
`hessop/_tiles/tuning.py` and `hessop/_equations/tuning.py` should say.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import statistics
import subprocess
import time

import energies
import first_call_cases
import first_call_models
import gpu_kernels
import jax
import jax.numpy as jnp
import numpy as np

import hessop
from hessop._equations import tuning as rates
from hessop._tiles import Options, trace_tiled, tuning

jax.config.update("jax_default_matmul_precision", "highest")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of everything, and the seconds that all of it may take."""

    particles: int
    many_particles: int
    listed: int
    widths: tuple[int, ...]
    fitting: int  # particles for which jax.hessian fits
    first_calls: tuple[str, ...]
    forms: tuple[str, ...]
    form_energies: tuple[str, ...]
    form_functions: tuple[str, ...]
    rounds: int
    seconds: float


NET = (256, 256, 128, 10)
FIRST = ("issue_787", "embedded_atoms", "neighbour_list", "net", "logistic", "rosenbrock")
FORMS = tuple(tuning.GPU_FORMS)
PAIRS = ("safe_sqrt", "periodic_lennard_jones", "embedded_atoms")
SIZES = {
    "full": Sizes(
        2483, 50_000, 100_000, NET, 256, FIRST, FORMS, PAIRS, ("product", "gradient", "three products", "energy"), 30, 270.0
    ),
    "quick": Sizes(2483, 50_000, 20_000, NET, 128, FIRST[:3], FORMS, PAIRS[:1], ("product", "gradient"), 10, 105.0),
    "tiny": Sizes(40, 90, 60, (6, 8, 3), 12, FIRST[-1:], ("arrays", "kernel 32 x 32"), PAIRS[1:2], ("product",), 1, 1e9),
}


def on_gpu():
    return jax.default_backend() in ("gpu", "cuda", "rocm")


# --- measuring ---


class Table:
    """Rows of measurements, printed as they come."""

    def __init__(self, sizes):
        self.sizes, self.rows, self.begun = sizes, [], time.perf_counter()

    def add(self, case, what, who, call, *args, expected=None, times=1):
        """Time a call: its first, and the median of others. Returns the result, or None where it was left out."""
        if time.perf_counter() - self.begun > self.sizes.seconds:
            return self.leave_out(case, what, who, "no time left")
        try:
            first, result = seconds(lambda: call(*args))
            every = []
            while len(every) < self.sizes.rounds and (not every or sum(every) < 2.0):
                every.append(seconds(lambda: call(*args))[0])
        except (jax.errors.JaxRuntimeError, MemoryError, NotImplementedError, ValueError) as error:
            return self.leave_out(case, what, who, str(error).splitlines()[0][:120])
        error = None if expected is None else relative_error(result, expected)
        self.put(case=case, what=what, who=who, first=first, median=statistics.median(every) * times, error=error)
        return result

    def leave_out(self, case, what, who, why):
        """Say why there is no figure."""
        self.put(case=case, what=what, who=who, left_out=why)

    def put(self, **row):
        """Keep and print a row."""
        self.rows.append(row)
        label = f"{row['case']:<26} {row['what']:<18} {row['who']:<30}"
        if "left_out" in row:
            print(f"{label} left out: {row['left_out']}", flush=True)
            return
        error = "" if row.get("error") is None else f"  error {row['error']:.1e}"
        print(f"{label} first {row['first']:8.3f} s  then {1e3 * row['median']:10.4f} ms{error}", flush=True)

    def fastest(self, case, what, whos):
        """Whose row has the least median."""
        times = {who: self.median(case, what, who) for who in whos}
        measured = {who: t for who, t in times.items() if t is not None}
        return min(measured, key=measured.__getitem__, default="nothing was measured")

    def median(self, case, what, who):
        """The median of a row, or None."""
        keys = {"case": case, "what": what, "who": who}
        found = [row.get("median") for row in self.rows if all(row[k] == v for k, v in keys.items())]
        return found[0] if found else None


def seconds(call):
    begun = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begun, result


def relative_error(found, expected):
    found, expected = (
        np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in jax.tree.leaves(t)]) for t in (found, expected)
    )
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@contextlib.contextmanager
def float64():
    """JAX on the host, with 64-bit types on."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def exactly(call, *args):
    """The result of a function in float64, computed on the host."""
    with float64():
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64) if np.asarray(a).dtype.kind == "f" else a), args)
        return jax.tree.map(np.asarray, jax.jit(call)(*wide))


def product_of(energy):
    """A product with a Hessian, as JAX's documentation has it."""
    return lambda x, v, *args: jax.jvp(jax.grad(lambda x: energy(x, *args)), (x,), (v,))[1]


def particles(name, n):
    """A point and a direction in float32."""
    x = jnp.asarray(energies.point(name, n, np.float32))
    return x, jnp.asarray(np.random.RandomState(1).standard_normal(x.shape), np.float32)


# --- parts ---


def many_particles(table):
    """First, because the peak of the device's memory never falls."""
    case, n = f"distances, {table.sizes.many_particles}", table.sizes.many_particles
    x, v = particles("issue_787", n)
    rows = np.linspace(0, n - 1, 64).astype(int)
    wide, wide_v = np.asarray(x, np.float64), np.asarray(v, np.float64)
    expected = np.stack([row_of_product(wide, wide_v, i) for i in rows])
    H = hessop.HessianOperator(energies.issue_787, x)
    table.add(case, "product", "hessop", lambda v: H.mv(v)[rows], v, expected=expected)
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used is not None:
        print(
            f"    peak of the device's memory: {used / 1e9:.3f} GB; one array of all pairs: {4e-9 * n * n:.1f} GB", flush=True
        )
        table.rows[-1]["peak_bytes"] = used
    by_hand = jax.jit(lambda x, v: gpu_kernels.product(x, v, interpret=not on_gpu())[rows])
    table.add(case, "product", "by hand", by_hand, x, v, expected=expected)


def row_of_product(x, v, i):
    """One row of the Hessian of the sum of distances times v, from its formula."""
    d, e = x[i] - x, v[i] - v
    r = np.sqrt(np.sum(d**2, axis=1))
    one = np.divide(1, r, where=r > 0, out=np.zeros_like(r))
    return np.sum(2 * one[:, None] * (e - (np.sum(d * e, axis=1) * one**2)[:, None] * d), axis=0)


def issue(table):
    """The energy of JAX issue #787; rivals run its safe form, as JAX's derivatives of it are NaN."""
    n = table.sizes.particles
    case, safe = f"distances, {n}", energies.safe_sqrt
    x, v = particles("issue_787", n)
    many = jnp.asarray(np.random.RandomState(2).standard_normal((64, *x.shape)), np.float32)
    H = hessop.HessianOperator(energies.issue_787, x)
    product = product_of(safe)
    exact = exactly(product, x, v)
    matrix = exactly(lambda x: hessop.HessianOperator(energies.issue_787, x).materialize(), x)
    table.add(case, "fill", "jnp.full", jax.jit(lambda s: jnp.full((x.size, x.size), s)), jnp.float32(1))
    table.add(case, "dense", "hessop", H.materialize, expected=matrix)
    table.add(case, "dense", "by hand", jax.jit(lambda x: gpu_kernels.hessian(x, interpret=not on_gpu())), x, expected=matrix)
    table.add(case, "product", "hessop", H.mv, v, expected=exact)
    table.add(case, "product", "jit(jvp(grad))", jax.jit(product), x, v, expected=exact)
    table.add(
        case, "product", "by hand", jax.jit(lambda *a: gpu_kernels.product(*a, interpret=not on_gpu())), x, v, expected=exact
    )
    blocks = matrix.reshape(n, 3, n, 3)[np.arange(n), :, np.arange(n)]
    table.add(case, "blocks", "hessop", lambda: H.block_diagonal(3), expected=blocks)
    table.add(case, "64 products", "hessop", H.mm, many)
    table.add(case, "64 products", "vmap(jvp(grad))", jax.jit(jax.vmap(product, (None, 0))), x, many)
    gradient = exactly(jax.grad(safe), x)
    table.add(case, "energy", "hessop", lambda: H.value, expected=exactly(safe, x))
    table.add(case, "energy", "jit", jax.jit(safe), x)
    table.add(case, "gradient", "hessop", lambda: H.gradient, expected=gradient)
    table.add(case, "gradient", "jit(grad)", jax.jit(jax.grad(safe)), x, expected=gradient)
    x, _ = particles("issue_787", table.sizes.fitting)
    case = f"distances, {len(x)}"
    few = exactly(jax.hessian(safe), x).reshape(x.size, x.size)
    table.add(case, "dense", "hessop", hessop.HessianOperator(energies.issue_787, x).materialize, expected=few)
    table.add(case, "dense", "jit(jax.hessian)", jax.jit(jax.hessian(safe)), x, expected=few)


def others(table):
    """Periodic Lennard-Jones and embedded atoms."""
    for name in ("periodic_lennard_jones", "embedded_atoms"):
        n, energy = table.sizes.particles, energies.ENERGIES[name]
        case = f"{name[:19]}, {n}"
        x, v = particles(name, n)
        exact = exactly(product_of(energy), x, v)
        H = hessop.HessianOperator(energy, x)
        table.add(case, "dense", "hessop", H.materialize)
        table.add(case, "product", "hessop", H.mv, v, expected=exact)
        table.add(case, "product", "jit(jvp(grad))", jax.jit(product_of(energy)), x, v, expected=exact)


def listed(table):
    """A Lennard-Jones crystal on a list of neighbours."""
    x, near = crystal(table.sizes.listed)
    case = f"neighbour list, {len(x)}"
    v = jnp.asarray(np.random.RandomState(1).standard_normal(x.shape), np.float32)
    product = product_of(listed_energy)
    exact = exactly(product, x, v, near)
    H = hessop.HessianOperator(listed_energy, x, (near,))
    table.add(case, "product", "hessop", H.mv, v, expected=exact)
    table.add(case, "product", "jit(jvp(grad))", jax.jit(product), x, v, near, expected=exact)
    table.add(case, "sparse matrix", "hessop", lambda: H.to_bcoo().data)


def crystal(n):
    """Positions of a simple cubic lattice with noise, and pairs of neighbours."""
    side = energies.lattice_side(n)
    sites = np.stack(np.unravel_index(np.arange(n), (side,) * 3), axis=1)
    number = np.full((side + 2,) * 3, -1)
    number[tuple((sites + 1).T)] = np.arange(n)
    steps = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1)]
    pairs = [np.stack([np.arange(n), number[tuple((sites + 1 + step).T)]], axis=1) for step in np.asarray(steps)]
    near = np.concatenate([p[p[:, 1] >= 0] for p in pairs]).astype(np.int32)
    x = sites + np.random.RandomState(0).uniform(-0.05, 0.05, sites.shape)
    return jnp.asarray(1.1 * x, np.float32), jnp.asarray(near)


def listed_energy(x, near):
    squares = jnp.sum((x[near[:, 0]] - x[near[:, 1]]) ** 2, axis=1)
    return jnp.sum(4 * (1 / squares**6 - 1 / squares**3))


def net(table):
    """A product with the Hessian of a net's loss."""
    with float64():
        loss, *arrays = first_call_models.net(*table.sizes.widths)
        params, data = jax.tree.map(np.asarray, arrays)
    params, data = jax.tree.map(lambda a: jnp.asarray(a, np.float32), (params, data))
    v = jax.tree.map(jnp.cos, params)
    case = f"net, {sum(a.size for a in jax.tree.leaves(params))}"
    product = product_of(loss)
    exact = exactly(product, params, v, *data)
    H = hessop.HessianOperator(loss, params, data)
    table.add(case, "product", "hessop", H.mv, v, expected=exact)
    table.add(case, "product", "jit(jvp(grad))", jax.jit(product), params, v, *data, expected=exact)


def first_calls(table):
    """What the first dense Hessian costs, with tracing and compilation, in seconds of the process."""
    for name in table.sizes.first_calls:
        with float64():
            fn, x, args = first_call_cases.build(name, "small")
            x, args = (jax.tree.map(np.asarray, tree) for tree in (x, args))
        narrow = lambda a: jnp.asarray(a, np.float32) if a.dtype.kind == "f" else jnp.asarray(a)
        x, args = jax.tree.map(narrow, (x, args))
        ours = lambda fn, x, args: hessop.HessianOperator(fn, x, args).materialize()
        for who, call in (("hessop", ours), ("jit(jax.hessian)", lambda fn, x, args: jax.jit(jax.hessian(fn))(x, *args))):
            begun = time.process_time()
            first, _ = seconds(functools.partial(call, fn, x, args))
            table.put(case=f"first call, {name}", what="dense", who=who, first=first, median=time.process_time() - begun)


def three_products(energy, x):
    """Three at once, as the diagonal blocks of particles take."""
    return [product_of(energy)(x, jnp.zeros_like(x).at[:, c].set(jnp.cos(x[:, 0]))) for c in range(3)]


def forms(table):
    """Every form of the tiles, on the pair functions; and which is the fastest."""
    n, best, forms = table.sizes.particles, {}, table.sizes.forms
    for name in table.sizes.form_energies:
        energy = energies.ENERGIES[name]
        x, v = particles(name, n)
        functions = {
            "energy": (energy, (x,)),
            "gradient": (jax.grad(energy), (x,)),
            "product": (product_of(energy), (x, v)),
            "three products": (functools.partial(three_products, energy), (x,)),
        }
        for what in table.sizes.form_functions:
            fn, args = functions[what]
            expected = exactly(fn, *args)
            for form in forms:
                chosen = tuning.GPU_FORMS[form]
                # Everything is virtual, as it would be at a size that matters.
                options = Options(form=chosen, threshold_elements=min(n, tuning.THRESHOLD_ELEMENTS))
                tiled = trace_tiled(lambda *a, fn=fn: jax.tree.leaves(fn(*a)), args, options)
                if chosen.kernel is not None and (refused := tiled.refused_kernels()):
                    table.leave_out(f"forms, {name[:19]}", what, form, refused[0])
                    continue
                table.add(f"forms, {name[:19]}", what, form, jax.jit(tiled), *args, expected=expected)
            table.add(f"forms, {name[:19]}", what, "jit", jax.jit(fn), *args, expected=expected)
            best[f"{name}, {what}"] = table.fastest(f"forms, {name[:19]}", what, (*forms, "jit"))
    return say_best("the fastest forms; hessop/_tiles/tuning.py has them in FORMS:", best)


def say_best(title, best):
    """Print what is the fastest, and return it."""
    print(f"\n{title}")
    for what, who in best.items():
        print(f"    {what:<44} {who}")
    return best


@contextlib.contextmanager
def form_here(form):
    """All of hessop with another form on this platform."""
    platform = "gpu" if on_gpu() else "cpu"
    usual = tuning.FORMS[platform]
    tuning.FORMS[platform] = form
    jax.clear_caches()
    try:
        yield
    finally:
        tuning.FORMS[platform] = usual
        jax.clear_caches()


def entry_forms(table):
    """The dense matrix, its blocks and 64 products, from terms on whole arrays, and by tiles in every form."""
    n, best = table.sizes.particles, {}
    for name in table.sizes.form_energies:
        energy, case = energies.ENERGIES[name], f"entries, {name[:17]}"
        x, _ = particles(name, n)
        many = jnp.asarray(np.random.RandomState(2).standard_normal((64, *x.shape)), np.float32)
        ways = {"whole": (tuning.FORMS["gpu"], "structure")}
        ways |= {form: (tuning.GPU_FORMS[form], "tiles") for form in table.sizes.forms}
        for way, (form, route) in ways.items():
            with form_here(form):
                H = hessop.HessianOperator(energy, x, route=route)
                table.add(case, "dense", way, H.materialize)
                table.add(case, "blocks", way, functools.partial(H.block_diagonal, 3))
                table.add(case, "64 products", way, H.mm, many)
        for what in ("dense", "blocks", "64 products"):
            best[f"{name}, {what}"] = table.fastest(case, what, ways)
    return say_best("the fastest ways to entries and many products:", best)


def platform_rates(table):
    """What `RATES` should say for this platform."""
    elements = 2**26 if on_gpu() else 2**16
    side = 4096 if on_gpu() else 256
    a, m = jnp.ones(elements, np.float32), jnp.ones((side, side), np.float32)
    at = jnp.asarray(np.random.RandomState(0).randint(0, elements // 8, elements // 8), np.int32)
    known = {
        "pass": (jax.jit(lambda a: 1.5 * a + 1), (a,)),
        "product": (jax.jit(lambda m: m @ m), (m,)),
        "matrix times vector": (jax.jit(lambda m, v: m @ v), (m, m[0])),
        "scatter": (jax.jit(lambda a, at: jnp.zeros(elements // 8).at[at].add(a[: elements // 8])), (a, at)),
    }
    for what, (call, args) in known.items():
        table.add("rates", what, "JAX", call, *args)
    times = {what: table.median("rates", what, "JAX") for what in known}
    if None in times.values():
        return None
    element = times["pass"] / elements
    found = rates.Rates(
        seconds_per_element=element,
        multiply_adds_per_element=side**3 * element / times["product"],
        reads_per_element=side**2 * element / times["matrix times vector"],
        elements_per_scatter=times["scatter"] / (elements // 8) / element,
        tile_speedup=rates.RATES["gpu"].tile_speedup,
    )
    print(f"\nhessop/_equations/tuning.py should say, apart from tile_speedup, which the forms show:\n    {found}")
    return found._asdict()


# --- the run ---


def described():
    """The device, the driver, and the versions."""
    device = jax.devices()[0]
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    packages = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "lineax", "equinox", "numpy")
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "driver": driver,
        "versions": versions,
        "hessop": hessop.__version__,
        "tf32": "off: jax_default_matmul_precision is 'highest'",
        "dtype": "float32",
    }


def main(arguments=None):
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--size", choices=list(SIZES), help="by default that of --quick or full on a GPU, and tiny elsewhere")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the table")
    options = parser.parse_args(arguments)
    size = options.size or (("quick" if options.quick else "full") if on_gpu() else "tiny")
    table, about = Table(SIZES[size]), described()
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    if not on_gpu():
        print("This is no GPU: kernels run as plain JAX, and the times mean nothing.")
    print()
    parts = (many_particles, issue, others, listed, net, first_calls, platform_rates, forms, entry_forms)
    found = {part.__name__: part(table) for part in parts}
    report = {
        **about,
        "size": size,
        "seconds": time.perf_counter() - table.begun,
        "rows": table.rows,
        "best_forms": found["forms"] | found["entry_forms"],
        "rates": found["platform_rates"],
    }
    print(f"\nall of it took {report['seconds']:.0f} s")
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()
