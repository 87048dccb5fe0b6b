"""Newton's method with sparse factorizations, from the standard start to a gradient below 1e-8, compared with other solvers.

  python benchmarks/sparse_newton.py                       all cases, about half an hour
  python benchmarks/sparse_newton.py --cases surface --sizes 100 --routes "hessop, LU" IPOPT

Each solve runs in a fresh process and is timed from the function to the solution, compilation included. CasADi takes the
functions in its own language and has IPOPT with it. L-BFGS and Newton with a trust region and products are those of scipy, on
functions compiled by JAX. A minimal surface has a frame of fixed heights; `--sizes` are the unknowns along its side.
"""

import argparse
import json
import sys
import time

import numpy as np
from measuring import in_child, say, short

SIZES = {"chain": (100, 1_000), "surface": (100, 316, 1_000)}
QUICK = {"chain": (50,), "surface": (20,)}
TOLERANCE = 1e-8
ITERATIONS = 100_000


def chain(n):
    """(objective, start) of the chained Rosenbrock function."""
    import jax.numpy as jnp

    def fn(x):
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)

    return fn, np.where(np.arange(n) % 2 == 0, -1.2, 1.0)


def frame(side):
    """Heights [side + 2, side + 2] of a frame over the unit square: two arches."""
    heights = np.zeros((side + 2, side + 2))
    heights[0] = heights[-1] = np.sin(np.pi * np.linspace(0.0, 1.0, side + 2))
    return heights


def surface(side):
    """(objective, start) of the area of a surface of two triangles for each cell."""
    import jax.numpy as jnp

    outside, h = jnp.asarray(frame(side)), 1.0 / (side + 1)

    def fn(u):
        z = outside.at[1:-1, 1:-1].set(u.reshape(side, side))
        down, right = (z[1:] - z[:-1]) / h, (z[:, 1:] - z[:, :-1]) / h
        upper = jnp.sqrt(1.0 + down[:, :-1] ** 2 + right[:-1] ** 2)
        lower = jnp.sqrt(1.0 + down[:, 1:] ** 2 + right[1:] ** 2)
        return 0.5 * h**2 * jnp.sum(upper + lower)

    return fn, np.zeros(side**2)


CASES = {"chain": chain, "surface": surface}


# --- routes: each returns (solution, iterations) ---


def by_hessop(solver):
    def run(case, size, seconds):
        import jax
        import jax.numpy as jnp
        import optax

        import hessop.optax
        import hessop.scipy

        fn, start = CASES[case](size)
        newton = hessop.optax.newton_trust_region(solver=getattr(hessop.scipy, solver)())
        value_and_grad = optax.value_and_grad_from_state(fn)

        @jax.jit
        def step(x, state):
            value, grad = value_and_grad(x, state=state)
            updates, state = newton.update(grad, state, x, value=value, grad=grad, value_fn=fn)
            return optax.apply_updates(x, updates), state, jnp.max(jnp.abs(grad))

        x, iterations = jnp.asarray(start), 0
        state = newton.init(x)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            new, state, size_of_gradient = step(x, state)
            if size_of_gradient < TOLERANCE:
                break
            x, iterations = new, iterations + 1
        return np.asarray(x), iterations

    return run


def by_asdex(case, size, seconds):
    """Newton's method, without a safeguard, with the matrices of asdex and the factorization of scipy."""
    import asdex
    import jax
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import splu

    fn, start = CASES[case](size)
    gradient, hessian = jax.jit(jax.grad(fn)), jax.jit(asdex.hessian(fn, start))
    x, end, iterations = start, time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        grad = np.asarray(gradient(x))
        if np.abs(grad).max() < TOLERANCE:
            break
        found = hessian(x)
        places = np.asarray(found.indices)
        matrix = csc_array((np.asarray(found.data), (places[:, 0], places[:, 1])), shape=found.shape)
        x, iterations = x - splu(matrix, permc_spec="MMD_AT_PLUS_A").solve(grad), iterations + 1
    return x, iterations


def by_scipy(method, options):
    def run(case, size, seconds):
        import jax
        from scipy.optimize import minimize

        fn, start = CASES[case](size)
        value_and_grad = jax.jit(jax.value_and_grad(fn))
        product = jax.jit(lambda x, v: jax.jvp(jax.grad(fn), (x,), (v,))[1])
        end = time.perf_counter() + seconds

        def stop(intermediate_result):
            done = np.abs(np.asarray(value_and_grad(intermediate_result.x)[1])).max() < TOLERANCE
            if done or time.perf_counter() > end:
                raise StopIteration

        fun = lambda x: tuple(map(np.asarray, value_and_grad(x)))
        hessp = {"hessp": lambda x, v: np.asarray(product(x, v))} if "trust" in method else {}
        found = minimize(fun, start, jac=True, method=method, callback=stop, options=options, **hessp)
        return found.x, found.nit

    return run


def by_ipopt(case, size, seconds):
    import casadi

    if case == "chain":
        x = casadi.MX.sym("x", size)
        value = casadi.sum1(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    else:
        x, h = casadi.MX.sym("x", size**2), 1.0 / (size + 1)
        outside = frame(size)
        rows = casadi.reshape(x, size, size).T  # column by column in CasADi
        inside = casadi.horzcat(outside[1:-1, :1], rows, outside[1:-1, -1:])
        z = casadi.vertcat(outside[:1], inside, outside[-1:])
        down, right = (z[1:, :] - z[:-1, :]) / h, (z[:, 1:] - z[:, :-1]) / h
        upper = casadi.sqrt(1 + down[:, :-1] ** 2 + right[:-1, :] ** 2)
        lower = casadi.sqrt(1 + down[:, 1:] ** 2 + right[1:, :] ** 2)
        value = 0.5 * h**2 * casadi.sum1(casadi.sum2(upper + lower))
    options = {"tol": TOLERANCE, "max_iter": ITERATIONS, "max_wall_time": seconds, "print_level": 0, "sb": "yes"}
    solver = casadi.nlpsol("solver", "ipopt", {"x": x, "f": value}, {"ipopt": options, "print_time": False})
    found = solver(x0=CASES[case](size)[1])
    return np.asarray(found["x"]).reshape(-1), solver.stats()["iter_count"]


ROUTES = {
    "hessop, LU": by_hessop("SparseLU"),
    "hessop, Cholesky": by_hessop("SparseCholesky"),
    "asdex, LU": by_asdex,
    "scipy, trust-krylov": by_scipy("trust-krylov", {"gtol": 0.0, "maxiter": ITERATIONS}),
    "scipy, L-BFGS": by_scipy("L-BFGS-B", {"gtol": 0.0, "ftol": 0.0, "maxiter": ITERATIONS, "maxfun": 10 * ITERATIONS}),
    "IPOPT": by_ipopt,
}


def measure(task):
    """One solve: seconds, iterations, and the value and the gradient where it ended."""
    import jax

    jax.config.update("jax_enable_x64", True)
    case, size, route = task["case"], task["size"], task["route"]
    jax.block_until_ready(jax.numpy.zeros(1))
    row = {"case": case, "size": size, "route": route}
    try:
        start = time.perf_counter()
        x, iterations = ROUTES[route](case, size, task["timeout"])
        row |= {"seconds": time.perf_counter() - start, "iterations": int(iterations)}
        value, grad = jax.value_and_grad(CASES[case](size)[0])(x)
        row |= {"value": float(value), "gradient": float(abs(grad).max())}
    except Exception as error:
        row["skipped"] = short(error)
    say(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds per solve")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", help="JSON file to which the rows are written")
    options = parser.parse_args()
    found = []
    for case in options.cases:
        for size in options.sizes or (QUICK if options.quick else SIZES)[case]:
            print(f"\n| {case} {size} | seconds | iterations | value | gradient |\n|---|---|---|---|---|")
            for route in options.routes:
                task = {"case": case, "size": size, "route": route, "timeout": options.timeout}
                rows, why = in_child(__file__, task, 2 * options.timeout)
                for row in rows or [{"case": case, "size": size, "route": route, "skipped": why}]:
                    found.append(row)
                    if "seconds" in row:
                        figures = f"{row['seconds']:.3g} | {row['iterations']} | {row['value']:.9g} | {row['gradient']:.1e}"
                        print(f"| {route} | {figures} |", flush=True)
                    else:
                        print(f"| {route} | {str(row['skipped'])[:70]} | | | |", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measure(json.loads(sys.argv[2]))
    else:
        main()
