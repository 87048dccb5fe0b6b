"""Runs the search: a few programs in every lane, each operation with `make slow`, many programs with `make soak`."""

import collections
import os

import jax
import numpy as np
import pytest

from tests.soak.operations import OPERATIONS
from tests.soak.search import alone, program_of, search

PROGRAMS = int(os.environ.get("HESSOP_SOAK_PROGRAMS", "2000"))
SEED = int(os.environ.get("HESSOP_SOAK_SEED", "0"))
SHARDS = 20
DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32


def check(programs, **options):
    counts = collections.Counter()
    found = search(programs, counts, **options)
    assert not found, "\n".join(f"{program}\n  " + "\n  ".join(texts) for program, texts in found)
    return counts


@pytest.mark.parametrize("number", [11, 25, *(pytest.param(n, marks=pytest.mark.long) for n in (13, 15))])
def test_a_few_programs(number):
    counts = check([program_of(1000, number)], routes=("structure",), dtypes=(DTYPE,))
    assert counts["comparisons"], f"nothing was compared: {dict(counts)}"


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation(name):
    counts = check([alone(name)], routes=("structure",), longest=None)
    # JAX's own derivative of a scattered minimum at clipped indices may be NaN.
    assert counts["comparisons"] or counts["skipped, not finite in JAX"], f"nothing was compared: {dict(counts)}"


@pytest.mark.once
@pytest.mark.soak
@pytest.mark.parametrize("shard", range(SHARDS))
def test_many_programs(shard, capsys):
    counts = check(program_of(SEED, k) for k in range(shard, PROGRAMS, SHARDS))
    with capsys.disabled():
        print(f"\nshard {shard} of seed {SEED}: " + ", ".join(f"{k}: {n}" for k, n in counts.items()))  # noqa: T201
