import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segue.env.units import contents, run_ends

homes = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(np.array)


@given(homes)
def test_every_end_lies_in_one_run_and_touches_its_border(home):
    for member in run_ends(home):
        groups = np.flatnonzero(member)
        assert len(groups) >= 2
        assert (np.diff(groups) == 1).all()
        assert len(set(home[groups])) == 1
        first, last = groups[0], groups[-1]
        opens = first == 0 or home[first - 1] != home[first]
        closes = last == len(home) - 1 or home[last + 1] != home[last]
        assert opens or closes


@given(homes)
def test_no_end_appears_twice(home):
    rows = run_ends(home)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_ends_of_a_run_of_three():
    rows = {tuple(np.flatnonzero(row)) for row in run_ends(np.array([0, 1, 1, 1, 0]))}
    assert rows == {(1, 2, 3), (2, 3), (1, 2)}


@given(homes)
def test_contents_part_the_groups_among_the_devices_that_hold_any(home):
    held, devices = contents(home)
    assert (held.sum(axis=0) == 1).all()
    for member, device in zip(held, devices, strict=True):
        assert set(home[member]) == {device}
