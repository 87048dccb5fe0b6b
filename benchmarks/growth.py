"""Time of a dense Hessian against the number of particles: the data for the picture in the README.

  python benchmarks/growth.py
  python benchmarks/growth.py --sizes 10 20 --rounds 3 --out /tmp/growth.json     a trial run

The energy of JAX issue #787 in float32. Each size runs in its own process, with all routes interleaved; times exclude
compilation. `jax.hessian` receives the energy with self-pairs masked by hand, because it would return NaN otherwise, and is
skipped if it would need more than --memory bytes. The loop of products is timed on some columns and extrapolated.
`benchmarks/pictures.py` draws the result.
"""

from cases import compare
from running import Part, main

ROUTES = ("materialize", "jit(jax.hessian)", "column loop", "handwritten")
PARTS = {
    "growth": Part(
        "a dense Hessian, warm",
        lambda rows: [],
        energies=("issue_787",),
        sizes=(10, 20, 50, 100, 200, 300, 500, 1000, 2483, 5000),
        routes=ROUTES,
        reference=("materialize", "column loop", "handwritten"),
        patience=20.0,
        timeout=900.0,
    ),
}


def _tasks():
    import rivals

    return {"compare": lambda task: compare(task, rivals.ROUTES)}


if __name__ == "__main__":
    main("Time of a dense Hessian against N", __doc__, __file__, PARTS, _tasks, "benchmarks/results/growth.json")
