"""The command line `grd-edge`: one file per verb, each calls one library function.

Results go to stdout, everything else to stderr. Exit codes: 0 good, 1 a user error in one sentence, 2 usage,
3 a check or gate failed.
"""

from __future__ import annotations

import sys

import typer

from grd_edge.cli import (
    bench,
    build,
    calibrate,
    compare,
    demo,
    doctor,
    eval,
    import_,
    infer,
    inspect,
    package,
    recalibrate,
    report,
    stream,
    train,
    validate_config,
)
from grd_edge.cli.common import is_first_process
from grd_edge.errors import GrdError, InputError, MissingExtraError, StoppedError
from grd_edge.interrupts import noticing_ctrl_c

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
app.command("stream")(stream.stream)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("package")(package.package)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)

# top-level packages that only an extra installs -> that extra
_EXTRA_OF = {
    "cv2": "images",
    "onnx": "build",
    "onnxruntime": "build",
    "elpv_dataset": "demo",
    "matplotlib": "demo",
    "jinja2": "report",
}


def main() -> None:
    """Entry point: turns errors into one sentence on stderr and an exit code."""
    with noticing_ctrl_c() as stopped:
        try:
            app()
        except BaseException as error:
            told = _told(error)
            # Whatever a library makes of the interruption, typer an exit code and torch an error of its own.
            if stopped() and not isinstance(error, StoppedError):
                told = StoppedError("stopped by Ctrl-C; every file is complete, as it was or as this command makes it")
            if told is None:
                raise
            if is_first_process():
                print(f"grd-edge: {told}", file=sys.stderr)
            sys.exit(told.exit_code)


def _told(error: BaseException) -> GrdError | None:
    """What a user is told of an error; None of one that is no user's business."""
    if isinstance(error, GrdError):
        return error
    if isinstance(error, OSError):  # what no verb foresees, such as a name that is too long
        return InputError(f"{error.filename or 'a file'} cannot be used ({error.strerror}); check path and disk")
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in ("", "grd_edge"):
        return None
    extra = _EXTRA_OF.get(package, "train")
    return MissingExtraError(f"this verb needs {package}, which is not installed; pip install 'grd-edge[{extra}]'")
