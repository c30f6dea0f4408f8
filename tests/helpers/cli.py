"""Run commands in this process and read what they say."""

from click.testing import CliRunner

from cli import main
from mobileone_q.architecture.variants import build_variant

BLOCKS = [block.name for block in build_variant("s0").blocks]


def invoke(*words, code=0):
    """Run a command in this process; any exception but an exit is a failure of the test."""
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def refused(*words, code=1):
    """The single line that a command ends with when it refuses."""
    output = invoke(*words, code=code)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert output.splitlines()[-1] == errors[0]
    return errors[0]
