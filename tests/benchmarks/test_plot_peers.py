from pathlib import Path

from benchmarks.plot_peers import draw, rows

PICTURE = Path(__file__).parents[2] / "docs" / "img" / "peers.svg"


def test_the_picture_is_that_of_the_table():
    assert PICTURE.read_text() == draw(), "run `python benchmarks/plot_peers.py`"
    names = [name for name, _, _ in rows()]
    assert len(names) > 10
    assert names[0].startswith("mobileone-q")
