"""Architectures drawn at random by hypothesis."""

from hypothesis import strategies as st

from mobileone_q.architecture.config import ArchitectureConfig
from mobileone_q.errors import ArchitectureError


def build(**fields):
    return ArchitectureConfig.model_validate(fields).build()


# Small, so that 200 of them take seconds. Sizes may differ by axis, and padding is not always "same".
ODD = st.sampled_from([1, 3, 5])
sizes = st.one_of(ODD, st.tuples(ODD, ODD))
steps = st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 2), st.integers(1, 2)))
pads = st.one_of(st.integers(0, 4), st.tuples(st.integers(0, 4), st.integers(0, 4)))


@st.composite
def block_fields(draw):
    depth = draw(st.integers(1, 2))
    return {
        "filters": draw(st.integers(1, 8)),
        "depth": depth,
        "kernel_size": draw(sizes),
        "strides": draw(steps),
        "padding": draw(pads),
        "dilation": draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))),
        "se_ratio": draw(st.sampled_from([1, 2, 8])),
        "se_depth": draw(st.integers(0, depth)),
        "num_conv_branches": draw(st.integers(1, 3)),
        "activation": draw(st.sampled_from(["relu", "relu6"])),
    }


@st.composite
def architectures(draw):
    signal = draw(st.booleans())
    fields = {
        "input_filters": draw(st.integers(1, 6)),
        "input_channels": draw(st.integers(1, 3)),
        "input_kernel_size": draw(ODD if signal else sizes),
        "input_strides": draw(st.integers(1, 2)),
        "input_padding": draw(st.integers(0, 2)),
        "input_activation": draw(st.sampled_from(["relu", "relu6"])),
        "input_size": [draw(st.integers(40, 64))] if signal else [draw(st.integers(26, 34)), 30],
        "include_top": draw(st.booleans()),
        "num_classes": 3,
        "blocks": draw(st.lists(block_fields(), min_size=1, max_size=2)),
    }
    if signal:
        for block in fields["blocks"]:
            for key in ("kernel_size", "strides", "padding", "dilation"):
                block[key] = block[key] if isinstance(block[key], int) else block[key][1]
    try:
        return build(**fields)
    except ArchitectureError:  # nothing is left of the input: make a larger one of it
        for block in fields["blocks"]:
            block |= {"strides": 1, "padding": 4, "dilation": 1}
        return build(**fields)
