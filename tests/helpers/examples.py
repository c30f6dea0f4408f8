"""How many examples a test draws: a share of them in `make test`, all of them in `make test-all`."""

import os

IS_THOROUGH = os.environ.get("MOBILEONE_Q_TESTS") == "all"  # set by `make test-all`


def examples(thorough: int, share: int = 3) -> int:
    """``thorough``, or one in ``share`` of them in `make test`."""
    return thorough if IS_THOROUGH else thorough // share
