"""Simulated devices: other devices, replicated and sharded arrays give the same numbers, on every route, in jit and outside."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, lineax as lx, numpy as np
import hessop, hessop.optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

jax.config.update("jax_enable_x64", True)


def fn(x):
    pairs = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    return jnp.sum(jnp.sin(x) * jnp.roll(x, 1, axis=0) ** 2) + jnp.sum(jnp.exp(-pairs)) + jnp.sum(x**2)


def newton(x):
    solver = hessop.optax.newton_cg()
    value, grad = jax.value_and_grad(fn)(x)
    return solver.update(grad, solver.init(x), x, value=value, grad=grad, value_fn=fn)[0]


USES = dict(
    value=lambda H, x, v: H.value,
    gradient=lambda H, x, v: H.gradient,
    mv=lambda H, x, v: H.mv(v),
    mm=lambda H, x, v: H.mm(jnp.stack([v, x])),
    materialize=lambda H, x, v: H.materialize(),
    chunks=lambda H, x, v: H.materialize(chunk=5),
    budget=lambda H, x, v: H.materialize(memory="60kB"),
    diagonal=lambda H, x, v: H.diagonal(),
    blocks=lambda H, x, v: H.block_diagonal(),
    block_jacobi=lambda H, x, v: hessop.block_jacobi(H).mv(v),
    linearise=lambda H, x, v: lx.linearise(H).mv(v),
    damped=lambda H, x, v: H.damped(2.0).materialize(),
    truncated_cg=lambda H, x, v: lx.linear_solve(H.damped(30.0), v, hessop.TruncatedCG(1e-10)).value,
    newton_cg=lambda H, x, v: newton(x),
    hessian=lambda H, x, v: hessop.hessian(fn, route=H.route)(x),
)

devices, routes, uses = json.loads('{what}')
uses = uses or list(USES)
rng = np.random.RandomState(0)
x0, v0 = jnp.asarray(rng.rand(8, 3)), jnp.asarray(rng.rand(8, 3))
mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,))
places = dict(second=jax.devices()[1], replicated=NamedSharding(mesh, P()), sharded=NamedSharding(mesh, P("d")))
count, wrong = 0, []
for route in routes:
    for name in uses:
        run = lambda x, v: USES[name](hessop.HessianOperator(fn, x, route=route), x, v)
        expected = np.asarray(run(x0, v0))
        for place, where in places.items():
            x, v = jax.device_put(x0, where), jax.device_put(v0, where)
            for jitted in (False, True):
                if jitted and name == "budget":
                    continue
                count += 1
                try:
                    found = np.asarray((jax.jit(run) if jitted else run)(x, v))
                    if not np.max(np.abs(found - expected)) <= 1e-9 * max(1.0, np.max(np.abs(expected))):
                        wrong.append([route, name, place, jitted, "another number"])
                except Exception as error:
                    wrong.append([route, name, place, jitted, f"{type(error).__name__}: {str(error)[:200]}"])
print(json.dumps([count, wrong]))
"""

ROUTES = ["auto", "structure", "columns", "tiles"]
QUICK = ["value", "gradient", "mv", "materialize", "chunks", "diagonal"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("devices", "routes", "uses"),
    [
        pytest.param(2, ["auto", "columns"], QUICK, marks=pytest.mark.long, id="quick"),
        pytest.param(2, ROUTES, None, marks=pytest.mark.slow, id="2"),
        pytest.param(4, ROUTES, None, marks=pytest.mark.slow, id="4"),
    ],
)
def test_the_same_as_on_one_device(devices, routes, uses):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    script = SCRIPT.replace("{what}", json.dumps([devices, routes, uses]))
    # XLA runs all simulated devices on one pool of threads, by default as many as there are cores. A collective occupies a
    # thread for each device until all have arrived; if other work holds the last one, XLA aborts the process after 40 s.
    env = {**os.environ, "XLA_FLAGS": flags, "NPROC": "16"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    count, wrong = json.loads(done.stdout.splitlines()[-1])
    print(f"{count} comparisons on {devices} devices, {len(wrong)} of them wrong")  # noqa: T201
    assert count >= 6 * len(routes) * len(QUICK) - 6
    assert wrong == []
