"""What the tests of `train` share."""

from typer.testing import CliRunner, Result

from grd_edge.cli import app


def ran(*arguments: object) -> Result:
    """`grd-edge train` in this process; errors that are no exit are raised."""
    done = CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done
