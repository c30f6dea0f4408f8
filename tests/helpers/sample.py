"""The bundled sample with fewer images to evaluate on: most tests do not need all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from mobileone_q.data import sample

EVALUATED = 100  # of 2,000, which take two thirds of a command's time
_all_images = sample.images


def _fewer_images(split):
    images, labels = _all_images(split)
    return (images[:EVALUATED], labels[:EVALUATED]) if split == "evaluation" else (images, labels)


@contextmanager
def smaller_sample() -> Iterator[None]:
    """Commands of this process evaluate on the first ``EVALUATED`` images."""
    with mock.patch.object(sample, "images", _fewer_images):
        yield


@contextmanager
def whole_sample() -> Iterator[None]:
    """Within :func:`smaller_sample`: all images, as a user has them."""
    with mock.patch.object(sample, "images", _all_images):
        yield
