"""The timing cache on disk, with a stand-in that keeps a set of lines as its cache."""

import threading

import pytest

from mobileone_q.engines.tensorrt import timing_cache


class Cache:
    def __init__(self, data, delay=None):
        self.lines, self.delay = set(filter(None, data.split(b"\n"))), delay

    def combine(self, other, ignore_mismatch):
        assert not ignore_mismatch
        self.lines |= other.lines
        return True

    def serialize(self):
        if self.delay:
            self.delay.wait(0.05)
        return b"\n".join(sorted(self.lines))


class Config:
    """``foreign`` is a cache that TensorRT refuses."""

    def __init__(self, foreign=None, delay=None):
        self.cache, self.foreign, self.delay = None, foreign, delay

    def create_timing_cache(self, data):
        return Cache(data, self.delay)

    def set_timing_cache(self, cache, ignore_mismatch):
        if self.foreign is not None and self.foreign in cache.lines:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path))
    return timing_cache.cache_path("tensorrt 10.3.0", "Orin (nvgpu)")


def test_one_cache_per_version_and_device(path, tmp_path, monkeypatch):
    assert path.parent == tmp_path / "timing"
    assert path.name.startswith("tensorrt-10.3.0-Orin-nvgpu-")
    others = {
        timing_cache.cache_path("tensorrt 10.3.1", "Orin (nvgpu)"),
        timing_cache.cache_path("tensorrt 10.3.0", "Orin"),
    }
    assert len(others | {path}) == 3
    monkeypatch.delenv("MOBILEONE_Q_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert timing_cache.cache_folder() == tmp_path / "xdg" / "mobileone-q"


def test_a_second_build_starts_from_the_first(path):
    first = Config()
    timing_cache.attach(first, path)
    first.cache.lines.add(b"conv")
    assert timing_cache.keep(first, path)
    second = Config()
    timing_cache.attach(second, path)
    assert second.cache.lines == {b"conv"}


def test_two_builders_at_once_lose_nothing(path):
    pause = threading.Event()  # never set: widens the window in which the other would be overwritten

    def build(name):
        config = Config(delay=pause)
        timing_cache.attach(config, path)
        config.cache.lines.add(name)
        assert timing_cache.keep(config, path)

    names = [f"layer{index}".encode() for index in range(8)]
    builders = [threading.Thread(target=build, args=(name,)) for name in names]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert path.read_bytes().split(b"\n") == names


def test_a_refused_cache_is_left_aside_and_an_unwritable_one_is_no_failure(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"foreign")
    config = Config(foreign=b"foreign")
    timing_cache.attach(config, path)
    assert config.cache.lines == set()
    blocked = path.parent / "file" / "x.cache"
    blocked.parent.touch()
    assert not timing_cache.keep(config, blocked)
