"""Images and arrays: where they come from, how they are prepared, and how they are batched."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    import lazy_loader

    # `mobileone_q.sample` is found through this; nothing heavy is imported before it is asked for.
    __getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["sample"])
