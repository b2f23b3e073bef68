"""The command line `grd-edge`: one file per verb, each calls one library function.

Results go to stdout, everything else to stderr. Exit codes: 0 good, 1 a user error in one sentence, 2 usage,
3 a check or gate failed.
"""

from __future__ import annotations

import sys

import typer

from grd_edge.cli import (
    build,
    calibrate,
    demo,
    doctor,
    eval,
    import_,
    infer,
    inspect,
    recalibrate,
    train,
    validate_config,
)
from grd_edge.cli.common import is_first_process
from grd_edge.errors import GrdError, InputError, MissingExtraError

app = typer.Typer(
    name="grd-edge",
    help="Industrial visual anomaly detection: good images in, decisions at line speed out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("validate-config")(validate_config.validate_config)
app.command("train")(train.train)
app.add_typer(import_.app, name="import")
app.command("calibrate")(calibrate.calibrate)
app.command("recalibrate")(recalibrate.recalibrate)
app.add_typer(build.app, name="build")
app.command("eval")(eval.eval_)
app.command("infer")(infer.infer)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)

# top-level packages that only an extra installs -> that extra
_EXTRA_OF = {"cv2": "images", "elpv_dataset": "demo", "matplotlib": "demo"}


def main() -> None:
    """Entry point: turns errors into one sentence on stderr and an exit code."""
    try:
        app()
    except GrdError as error:
        _fail(error)
    except OSError as error:  # what no verb foresees, such as a name that is too long
        _fail(
            InputError(f"{error.filename or 'a file'} cannot be used ({error.strerror}); check the path and the disk")
        )
    except KeyboardInterrupt:
        print("grd-edge: stopped by Ctrl-C; files that were complete before are unchanged", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or package == "grd_edge":
            raise
        extra = _EXTRA_OF.get(package, "train")
        _fail(MissingExtraError(f"this verb needs {package}, which is not installed; pip install 'grd-edge[{extra}]'"))


def _fail(error: GrdError) -> None:
    if is_first_process():
        print(f"grd-edge: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
