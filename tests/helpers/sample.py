"""The bundled sample: fewer images to evaluate on, and its run, which is calibrated once for all tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from mobileone_q.data import sample

CALIBRATED = 32  # images of the run that many tests share
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


def calibrated_sample(once: Callable[..., Path], target: str, *options: str) -> Path:
    """The folder with the sample's ``run`` and what the command ``said.txt``; read it only.

    ``once`` is the fixture: the sample is calibrated once for each target and options. A test that writes
    into the run takes the fixture ``sample_run`` instead, which copies it.
    """
    from tests.helpers.cli import invoke

    def make(folder: Path) -> None:
        words = ("--target", target, "--images", CALIBRATED, *options)
        said = invoke("calibrate", "--arch", "s0", *words, "--output", folder / "run")
        (folder / "said.txt").write_text(said, encoding="utf-8")

    return once(" ".join(("sample", target, *options)), make)
