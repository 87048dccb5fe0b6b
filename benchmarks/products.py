"""Energy, gradient, products and diagonal blocks: hessop on unmodified functions, compared with the alternatives.

  python benchmarks/products.py                        all parts, one after the other
  python benchmarks/products.py --parts speed many     selected parts

Each case runs in its own process, with all routes interleaved. Results are added to --out as JSON and written as tables to a
markdown file next to it. A rival is skipped if it would need more than --memory bytes, or if its time at the previous size
predicts more than four times --patience. JAX's derivatives of the energy in the issue are NaN, so rivals run the safe form.
"""

from cases import compare
from dense import ISSUE, cases, equal_claims, named, scaling_claims
from energies import ENERGIES
from report import at_least, at_most, claim, find, ratio
from running import Part, main

QUANTITIES = ("energy", "gradient", "HVP")
MANY = 64
SPEED = (
    *(f"{quantity}: {who}" for quantity in QUANTITIES for who in ("hessop", "jit", "hessop.tiled", "handwritten")),
    *(f"HVP: {who}" for who in ("KeOps", "linearized", "lineax.linearise", "outside of jit", "dense matrix")),
)
BLOCKS = ("blocks: hessop", "blocks: jit")


# --- claims ---


def speed_claims(rows):
    found = []
    for case in cases(rows):
        posted = case["energy"] in ("issue_787", "safe_sqrt")
        for quantity in QUANTITIES:
            limit = 6 if not posted else 15 if quantity == "HVP" else 10
            faster = ratio(rows, f"{quantity}: jit", f"{quantity}: hessop", **case)
            found.append(at_least(f"{quantity}, speedup over jit: {named(case)}", limit, faster))
        if posted:
            smaller = ratio(rows, "HVP: jit", "HVP: hessop", "temporaries", **case)
            found.append(at_least(f"HVP, reduction in temporaries over jit: {named(case)}", 20, smaller))
            found.append(
                at_most(
                    f"HVP relative to handwritten: {named(case)}", 12, ratio(rows, "HVP: hessop", "HVP: handwritten", **case)
                )
            )
            found.append(
                at_least(f"HVP, speedup over KeOps: {named(case)}", 2, ratio(rows, "HVP: KeOps", "HVP: hessop", **case))
            )
    return found


def many_claims(rows):
    many = [f"{MANY} HVPs: {who}" for who in ("hessop", "single ones")]
    return [
        at_most(f"{MANY} products relative to single ones: {named(case)}", 0.15, ratio(rows, *many, **case))
        for case in cases(rows)
    ]


def product_scaling_claims(rows):
    return scaling_claims(rows, 2.1)


def no_claims(rows):
    return []


def small_claims(rows):
    found = []
    for case in cases(rows):
        for quantity in QUANTITIES:
            routes = [f"{quantity}: {who}" for who in ("hessop", "jit")]
            if find(rows, "virtual", route=f"{quantity}: large values", **case) != 0:
                continue
            programs = [find(rows, "program", route=route, **case) for route in routes]
            if programs[0] is not None and programs[0] == programs[1]:
                # Calls of the same program differ only by noise.
                found.append(claim(f"{quantity} relative to jit: {named(case)}", "at most 1.1x", "the same program", True))
            else:
                found.append(at_most(f"{quantity} relative to jit: {named(case)}", 1.1, ratio(rows, *routes, **case)))
    return found


def digits_claims(rows):
    found = []
    for case in cases(rows):
        for quantity in ("gradient", "HVP"):
            errors = ratio(rows, f"{quantity}: hessop", f"{quantity}: jit", "rms", **case)
            found.append(at_most(f"error of the {quantity} relative to jit: {named(case)}", 1.0, errors))
    return found


def large_claims(rows):
    found = []
    for case in cases(rows):
        stages = [r for r in rows if "process" in r and all(r[k] == v for k, v in case.items())]
        peaks = {r["route"]: r["process"] / 1e6 for r in stages}
        for what, last in (
            ("", "blocks"),
            (" with the solve", "solve: TruncatedCG"),
            (" with both solves", "solve: lineax.CG"),
        ):
            found.append(at_most(f"peak memory of the process{what}: {named(case)}", 700, peaks.get(last), "{:.0f} MB"))
        for quantity in ("energy", "gradient", "HVP", "blocks"):
            error = find(rows, "error", route=quantity, **case)
            found.append(at_most(f"error of the {quantity}, compared with float64 sums: {named(case)}", 1e-5, error, "{:.1e}"))
        for solve in ("solve: TruncatedCG", "solve: lineax.CG"):
            residual, steps = (find(rows, figure, route=solve, **case) for figure in ("residual", "steps"))
            text = "not measured" if residual is None else f"{residual:.1e} in {steps} steps"
            kept = None if residual is None else residual <= 5e-3
            found.append(claim(f"residual, {solve}: {named(case)}", "at most 5.0e-03", text, kept))
    return found


PARTS = {
    "equal": Part(
        "compared with JAX, also with tiles of 7", equal_claims("JAX"), "equal", tuple(ENERGIES), ("float64",), (12,)
    ),
    "speed": Part(
        "at the size of the issue",
        speed_claims,
        energies=("issue_787", "safe_sqrt", "periodic_lennard_jones", "embedded_atoms"),
        sizes=(ISSUE,),
        routes=(*SPEED, *BLOCKS),
        rounds=25,
        growth=2,
    ),
    "many": Part(
        f"{MANY} products at once",
        many_claims,
        energies=("issue_787", "lennard_jones"),
        sizes=(ISSUE,),
        routes=tuple(f"{MANY} HVPs: {who}" for who in ("hessop", "single ones", "jit")),
        growth=2,
    ),
    "scaling": Part(
        "how the time grows with N",
        product_scaling_claims,
        energies=("issue_787",),
        sizes=(2500, 5000, 10_000, 20_000, 40_000),
        routes=tuple(f"{quantity}: hessop" for quantity in (*QUANTITIES, "blocks")),
        reference=tuple(f"{quantity}: hessop" for quantity in (*QUANTITIES, "blocks")),
        patience=6.0,
        growth=2,
    ),
    "sizes": Part(
        "from small to large",
        no_claims,
        energies=("issue_787",),
        sizes=(100, 300, 1000, ISSUE, 5000, 10_000, 30_000, 100_000),
        routes=(*SPEED, *BLOCKS),
        reference=tuple(f"{quantity}: hessop" for quantity in (*QUANTITIES, "blocks")),
        patience=1.0,
        rounds=7,
        growth=2,
    ),
    "small": Part(
        "sizes at which all intermediates can be stored",
        small_claims,
        "not virtual",
        energies=tuple(ENERGIES),
        sizes=(10, 100),
        routes=tuple(f"{quantity}: {who}" for quantity in QUANTITIES for who in ("hessop", "jit")),
        patience=0.5,
        rounds=40,
    ),
    "digits": Part(
        "float32 errors, compared with sums in float64",
        digits_claims,
        "digits",
        energies=("issue_787",),
        sizes=(600, 1000, 2477, ISSUE, 8000),
        routes=(*(f"{quantity}: {who}" for quantity in QUANTITIES for who in ("hessop", "jit")), "gradient: with value"),
    ),
    "large": Part(
        "everything in one process, at N = 50,000",
        large_claims,
        "large",
        energies=("issue_787",),
        sizes=(50_000,),
        timeout=900.0,
    ),
}


def _tasks():
    import product_tasks
    from product_rivals import ROUTES

    return {
        "compare": lambda task: compare(task, ROUTES),
        "not virtual": lambda task: product_tasks.not_virtual(task, ROUTES),
        "equal": product_tasks.equal,
        "digits": lambda task: product_tasks.digits(task, ROUTES),
        "large": product_tasks.large,
        "large process": product_tasks.large_process,
    }


if __name__ == "__main__":
    main("Energies, gradients, products and blocks", __doc__, __file__, PARTS, _tasks, "benchmarks/results/products.json")
