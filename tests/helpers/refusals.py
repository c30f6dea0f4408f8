"""Damage to files, drawn by hypothesis: flipped bits, cuts, and bytes put in or taken out."""

from hypothesis import strategies as st


def damaged(data: bytes, first: int | None = None):
    """A strategy of damaged copies of ``data``; damage is within the ``first`` bytes, if given."""
    place = st.integers(0, min(len(data), first or len(data)) - 1)
    some = st.binary(min_size=1, max_size=8)
    return st.one_of(
        st.builds(
            lambda at, bit: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :],
            place,
            st.integers(0, 7),
        ),
        st.builds(lambda at, new: data[:at] + new + data[at + len(new) :], place, some),
        st.builds(lambda at, new: data[:at] + new + data[at:], place, some),
        st.builds(lambda at, count: data[:at] + data[at + count :], place, st.integers(1, 64)),
        st.builds(lambda at: data[:at], place),
    )


def odd_values():
    """JSON values that do not belong where they are put."""
    return st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.floats(), st.text(max_size=5),
            st.integers(-2, 5), st.sampled_from([-1, 0, 10**9, 10**30, 1.5, "relu7", "../x", float("nan")]),
        ),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )  # fmt: skip


def answers_or_refuses(read, errors):
    """Read; anything but an answer or one of ``errors``, in one line, fails the test."""
    refusal = None
    try:
        return read()
    except errors as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None
