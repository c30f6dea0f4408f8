"""Threads that read ahead: the same inputs in the same order, few at once, and none left behind."""

import threading
import time

import numpy as np
import pytest

from mobileone_q.data import batches as batches_module
from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.read_ahead import read_ahead
from mobileone_q.data.sources import ImageFolder

SMALL = Preprocessing(resize=36, crop=32)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def slow_when_even(index):
    time.sleep(0.002 * (index % 2 == 0))
    return index * index


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_in_order_whatever_takes_longer(threads, count):
    read = [(index, get()) for index, get in read_ahead(slow_when_even, range(count), threads, 4)]
    assert read == [(index, index * index) for index in range(count)]
    assert not readers()


def test_only_a_few_are_in_memory():
    started = []
    for index, get in read_ahead(lambda k: started.append(k) or k, range(100), 2, ahead=5):
        get()
        assert len(started) <= index + 1 + 5
    assert len(started) == 100


def test_an_error_comes_at_its_place_and_the_others_are_read():
    def read(index):
        if index % 3 == 1:
            raise ValueError(str(index))
        return index

    found = []
    for _, get in read_ahead(read, range(7), 3, 2):
        try:
            found.append(get())
        except ValueError as error:
            found.append(str(error))
    assert found == [0, "1", 2, 3, "4", 5, 6]


@pytest.fixture
def threads(monkeypatch):
    """A function that sets how many threads read."""
    return lambda count: monkeypatch.setattr(batches_module, "reading_threads", lambda: count)


def test_threads_change_nothing_not_even_what_is_left_out(folder, threads):
    (folder / "cat" / "text.jpg").write_text("not an image")
    whole = (folder / "dog" / "0.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    results = []
    for count in (1, 4):
        threads(count)
        batches = Batches(ImageFolder(folder, SMALL), range(22), batch_size=3)
        x, y = map(np.concatenate, zip(*batches))
        results.append((x.tobytes(), y.tolist(), list(batches.skipped.items())))
    assert results[0] == results[1]
    assert [name for name, _ in results[0][2]] == ["cat/text.jpg", "dog/cut.jpg"]


def test_no_thread_stays_when_reading_ends_early(folder, threads):
    threads(3)

    def read_two_batches():
        for number, _ in enumerate(Batches(ImageFolder(folder, SMALL), range(20), batch_size=2)):
            if number == 1:
                assert readers()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_two_batches()
    assert not readers()
