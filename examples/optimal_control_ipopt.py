"""Optimal control with IPOPT: the Hessian of the Lagrangian and the Jacobian of the constraints, sparse and exact.

A pendulum swings up with the least effort. Trapezoidal collocation turns this into a problem with thousands of unknowns (angle,
velocity and torque at each time) and an equality constraint for each step. IPOPT asks for the Hessian of the Lagrangian
sigma f(z) + y'c(z): its structure once, its values at each iteration. The Jacobian of c is the block of another Hessian,
that of y'c(z) with respect to y and z.

    pip install cyipopt        needs the IPOPT library, for example Debian's coinor-libipopt-dev
    python examples/optimal_control_ipopt.py [--steps N] [--dense]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import hessop

SECONDS, GRAVITY, LIMIT = 3.0, 9.81, 12.0


def objective(z):
    """The integral of the squared torque."""
    return SECONDS * jnp.mean(z[:, 2] ** 2)


def constraints(z):
    """Residuals of the trapezoidal rule, then the states at both ends: hanging at rest, upright at rest."""
    angle, velocity, torque = z[:, 0], z[:, 1], z[:, 2]
    h = SECONDS / (len(z) - 1)
    rates = jnp.stack([velocity, torque - GRAVITY * jnp.sin(angle)], axis=1)
    defects = z[1:, :2] - z[:-1, :2] - 0.5 * h * (rates[1:] + rates[:-1])
    ends = jnp.array([z[0, 0], z[0, 1], z[-1, 0] - jnp.pi, z[-1, 1]])
    return jnp.concatenate([defects.ravel(), ends])


def lagrangian(z, sigma, y):
    """What IPOPT takes second derivatives of."""
    return sigma * objective(z) + jnp.vdot(y, constraints(z))


def coupling(both):
    """A function whose Hessian has the Jacobian of the constraints as a block."""
    return jnp.vdot(both["y"], constraints(both["z"]))


class Problem:
    """The callbacks of IPOPT. Everything is compiled once and called with new numbers."""

    def __init__(self, steps, dense):
        self.shape, self.dense, self.seconds, self.calls = (steps, 3), dense, 0.0, 0
        self.m = 2 * (steps - 1) + 4
        z, y = jnp.zeros(self.shape), jnp.zeros(self.m)
        self.value_and_gradient = jax.jit(jax.value_and_grad(objective))
        self.residuals = jax.jit(constraints)
        rows, columns = hessop.HessianOperator(coupling, {"y": y, "z": z}).pattern()
        inside = (rows < self.m) & (columns >= self.m)
        self.of_jacobian = rows[inside], columns[inside]
        self.of_hessian = hessop.HessianOperator(lagrangian, z, (1.0, y)).pattern(lower=True)
        if dense:
            self.of_hessian = np.tril_indices(3 * steps)
            self.matrix = jax.jit(jax.hessian(lagrangian))

    def pytree(self, z):
        """IPOPT's flat vector in the shape of the unknowns."""
        return jnp.asarray(z.reshape(self.shape))

    def objective(self, z):
        """The value of the objective."""
        return float(self.value_and_gradient(self.pytree(z))[0])

    def gradient(self, z):
        """The gradient of the objective."""
        return np.asarray(self.value_and_gradient(self.pytree(z))[1]).ravel()

    def constraints(self, z):
        """The values of the constraints."""
        return np.asarray(self.residuals(self.pytree(z)))

    def jacobianstructure(self):
        """Rows and columns of the nonzeros of the constraints' Jacobian."""
        return self.of_jacobian[0], self.of_jacobian[1] - self.m

    def jacobian(self, z):
        """The values of these nonzeros."""
        H = hessop.HessianOperator(coupling, {"y": jnp.zeros(self.m), "z": self.pytree(z)})
        return np.asarray(H.entries(*self.of_jacobian))

    def hessianstructure(self):
        """Rows and columns of the nonzeros of the Lagrangian's Hessian, on and below the diagonal."""
        return self.of_hessian

    def hessian(self, z, y, sigma):
        """The values of these nonzeros."""
        start = time.perf_counter()
        arguments = self.pytree(z), float(sigma), jnp.asarray(y)
        if self.dense:
            n = z.size
            values = np.asarray(self.matrix(*arguments)).reshape(n, n)[self.of_hessian]
        else:
            values = np.asarray(hessop.HessianOperator(lagrangian, arguments[0], arguments[1:]).entries(*self.of_hessian))
        self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
        return values


def solve(steps, dense):
    """The solution [steps, 3], and the problem with its times."""
    import cyipopt  # pyright: ignore[reportMissingImports]

    problem = Problem(steps, dense)
    n = 3 * steps
    bounds = np.tile([np.inf, np.inf, LIMIT], steps)
    solver = cyipopt.Problem(n, problem.m, problem, -bounds, bounds, np.zeros(problem.m), np.zeros(problem.m))
    for name, value in {"print_level": 0, "sb": "yes", "tol": 1e-8, "max_iter": 500}.items():
        solver.add_option(name, value)
    time_axis = np.linspace(0.0, 1.0, steps)
    start = np.stack([np.pi * time_axis, np.full(steps, np.pi / SECONDS), np.zeros(steps)], axis=1)
    begin = time.perf_counter()
    z, info = solver.solve(start.ravel())
    print(f"{'jax.hessian, dense' if dense else 'hessop, sparse'}: {info['status_msg'].decode().split('.')[0]}")
    print(f"  effort {info['obj_val']:.6f} after {problem.calls} Hessians, {time.perf_counter() - begin:.2f} s in total")
    print(f"  {len(problem.of_hessian[0])} entries per Hessian, {1e3 * problem.seconds / max(1, problem.calls):.2f} ms each")
    return z.reshape(steps, 3), problem


def main():
    """Solve the problem, and print what it took."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=3334, help="times; three unknowns each")
    parser.add_argument("--dense", action="store_true", help="also with the dense matrix of jax.hessian")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"swing-up of a pendulum: {3 * options.steps} unknowns")
    z, _ = solve(options.steps, dense=False)
    if options.dense:
        other, _ = solve(options.steps, dense=True)
        print(f"largest difference of the solutions: {np.abs(z - other).max():.1e}")


if __name__ == "__main__":
    main()
