import jax
import jax.numpy as jnp

from tests.structure.energies import neighbor_list, safe_sqrt
from tests.structure.support import points, terms_of


def test_a_pair_potential_has_four_lines():
    text = jax.eval_shape(terms_of(safe_sqrt, points(5)), points(5)).describe()
    places = [line.split(" += ")[0] for line in text]
    assert places == ["H[i,j; k,l]", "H[i,j; i,k]", "H[i,j; k,j]", "H[i,j; i,j]"]
    assert text[1].endswith("diagonal in i")
    assert text[3].endswith("diagonal in i,j")
    # An array has the same name in all products.
    assert text[0].count("·") == 6
    assert "B[i,k]" in text[0]
    assert "B[k,i]" in text[0]


def test_lookups_show_their_array():
    text = jax.eval_shape(terms_of(neighbor_list, points(5)), points(5)).describe()
    assert any(line.startswith("H[@A[i],j; @A[i],k]") for line in text)


def test_summed_ids_and_leaves_are_named():
    x = {"a": points(2), "b": jnp.ones((50,), points(2).dtype)}
    fn = lambda x: jnp.sum(jnp.sin(x["b"])) * jnp.sum(x["a"] ** 2)
    text = "\n".join(jax.eval_shape(terms_of(fn, x), x).describe())
    assert "H[x0:i,j; x1:k]" in text
    assert "H[x1:i; x1:i]" in text


def test_stored_entries_are_counted():
    terms = jax.eval_shape(terms_of(safe_sqrt, points(5)), points(5))
    assert sum(terms.term_sizes()) == 15 * 15 + 5 * 9 + 3 * 25 + 15
