"""Windows: which part of an input a part of the output needs."""

import numpy as np
import pytest

from hessop._tiles.windows import Follow, Span, Window, moving, source, whole


def test_whole_and_moving():
    assert whole(2) == Window((None, None), (0, 1))
    assert not whole(2).moves
    tile = moving(3, 1, 4)
    assert tile.moves
    assert tile.spans == (None, Span(0, 4, 0), None)
    assert tile.shape((9, 10, 3)) == (9, 4, 3)
    assert not Window((Span(2, 3), None), (0, 1)).moves


def test_a_transposition_changes_only_the_order():
    # b = a.T: axis 0 of a is axis 1 of b.
    window = source(moving(2, 0, 4), (Follow(1), Follow(0)), (9, 10), (10, 9))
    assert window == Window((None, Span(0, 4, 0)), (1, 0))
    back = source(window, (Follow(1), Follow(0)), (10, 9), (9, 10))
    assert back == moving(2, 0, 4)


def test_a_slice_moves_the_start():
    # b = a[2:7]: a tile of 4 of it, then all of it.
    assert source(moving(1, 0, 4), (Follow(0, 2),), (9,), (5,)).spans == (Span(2, 4, 0),)
    assert source(whole(1), (Follow(0, 2),), (9,), (5,)).spans == (Span(2, 5),)
    # A slice of a slice.
    inner = source(whole(1), (Follow(0, 2),), (9,), (5,))
    assert source(inner, (Follow(0, 3),), (20,), (9,)).spans == (Span(5, 5),)


def test_an_axis_that_follows_nothing_is_read_whole_and_comes_last():
    # b[j] = sum over axes 0 and 2 of a[i, j, k].
    window = source(moving(1, 0, 4), (None, Follow(0), None), (9, 10, 11), (10,))
    assert window == Window((None, Span(0, 4, 0), None), (1, 0, 2))


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_parts_are_those_of_numpy(start, axes):
    """out = transpose(a, axes)[start:]; a tile of length 2 at position 1 of its first axis."""
    a = np.arange(90).reshape(9, 10)
    out = a.transpose(axes)[start:]
    follows = tuple(Follow(axes.index(k), start if axes.index(k) == 0 else 0) for k in (0, 1))
    window = source(moving(2, 0, 2), follows, a.shape, out.shape)
    first = 1
    cut = tuple(
        slice(None)
        if s is None
        else slice(s.start + first * (s.loop is not None), s.start + first * (s.loop is not None) + s.size)
        for s in window.spans
    )
    assert a[cut].shape == window.shape(a.shape)
    np.testing.assert_array_equal(a[cut].transpose(window.order), out[first : first + 2])
