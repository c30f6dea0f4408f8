"""Settings whose fields make the command line's options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from mobileone_q.options import takes
from mobileone_q.settings import default_of, mistakes, options_of, setting


@dataclass(frozen=True)
class Settings:
    size: int = setting(3, "How large.", low=1, high=9)
    rate: float | None = setting(None, "How fast.", low=0, default_help="as fast as it can")
    kind: Literal["a", "b"] = setting("a", "Which kind.")
    quick: bool = setting(False, "Hurry.")
    kept: bool = setting(True, "Keep it.")
    names: tuple[str, ...] = setting((), "Who.", flag="--name")
    batch: tuple[int, int, int] = setting((1, 2, 3), "How many.")
    place: Path | None = setting(None, "Where.")
    whole: int = setting(0, "Any whole number.")
    real: float = setting(0.0, "Any number.")
    inner: int = 5


@dataclass(frozen=True)
class Others:
    size: int = setting(3, "How large.", low=1, high=9)
    other: int = setting(1, "Another.")


def run(*words, defaults=None, code=0):
    got = {}

    @click.command()
    @takes(Others, "others")
    @takes(Settings, "settings", defaults=defaults)
    @click.option("--plain", default=0)
    def command(settings, others, plain):
        got.update(settings=settings, others=others, plain=plain)

    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return got or result.output


def test_without_options_the_defaults_hold():
    assert run() == {"settings": Settings(), "others": Others(), "plain": 0}


def test_every_kind_of_field_is_an_option():
    words = ["--size", 5, "--rate", 0.5, "--kind", "b", "--quick", "--no-kept", "--name", "x", "--name", "y"]
    words += ["--batch", "4:5:6", "--place", "here", "--plain", 7, "--other", 2]
    got = run(*words)
    assert got["settings"] == Settings(
        5, 0.5, "b", True, False, names=("x", "y"), batch=(4, 5, 6), place=Path("here")
    )
    assert got["others"] == Others(size=5, other=2)  # a shared option reaches both
    assert got["plain"] == 7


def test_other_defaults_stand_in_for_the_fields_own():
    start = Settings(size=7, kind="b", inner=9)
    assert run(defaults=start)["settings"] == start
    assert "[default: 7;" in run("--help", defaults=start)


@pytest.mark.parametrize(
    "words", [("--size", 0), ("--size", 10), ("--rate", -1), ("--kind", "c"), ("--batch", "3:2:1")]
)
def test_bounds_and_choices_are_the_fields(words):
    assert words[0] in run(*words, code=2)


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "-inf", "99999999999999999999", "9" * 5000])
@pytest.mark.parametrize("flag", ["--rate", "--size", "--whole", "--real"])
def test_no_number_is_endless(flag, number):
    assert flag in run(f"{flag}={number}", code=2)


def test_the_help_says_what_the_fields_say():
    text = " ".join(run("--help").split())
    for option in options_of(Settings).values():
        assert option.help in text
    assert "[default: as fast as it can]" in text
    assert "--inner" not in text


def test_mistakes_are_named_all_at_once():
    wrong = mistakes(Settings(size=0, rate=float("nan"), kind="c"))
    assert wrong == ["size 0 (at least 1)", "rate nan (a number or None)", "kind 'c' (choose one of a, b)"]
    assert mistakes(Settings(whole=10**10)) == ["whole 10000000000 (at most 2,147,483,647)"]
    assert mistakes(Settings()) == []
    assert default_of(Settings, "size") == 3
