"""How many examples a test draws: a third in `make test`, all of them in `make test-all`."""

import os

IS_THOROUGH = os.environ.get("MOBILEONE_Q_TESTS") == "all"  # set by `make test-all`


def examples(thorough: int) -> int:
    return thorough if IS_THOROUGH else thorough // 3
