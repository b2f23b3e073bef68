"""Errors a user can meet. Every message is one sentence: what failed, what was found, what to do.

GrdError
├── InputError            images, folders, arguments                 exit code 1
│   └── ConfigError       a profile or a setting
├── CheckpointError       a checkpoint that cannot be used           exit code 1
├── BundleError           a bundle that cannot be used               exit code 1
├── EngineError           an engine that cannot be built or run      exit code 1
│   └── EngineMismatchError  one built for another device or version
├── DivergedError         a training whose loss is no number any more exit code 1
├── StoppedError          a run that was asked to stop               exit code 1
├── MissingExtraError     a package of an extra is not installed     exit code 1
└── CheckFailedError      a numeric check or a gate failed           exit code 3
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping


class GrdError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(GrdError):
    """Images, folders or arguments that cannot be used."""


class ConfigError(InputError):
    """A profile or setting that cannot be used."""


class CheckpointError(GrdError):
    """A checkpoint that cannot be used."""


class BundleError(GrdError):
    """A bundle that cannot be used."""


class EngineError(GrdError):
    """An engine that cannot be built or run."""


class EngineMismatchError(EngineError):
    """An engine that was built for another device, library or driver than this machine has."""


class DivergedError(GrdError):
    """A training whose loss or gradients are not finite any more; its last good state is saved."""


class StoppedError(GrdError):
    """A run that was asked to stop, by Ctrl-C or a signal; what it had done is saved."""


class MissingExtraError(GrdError):
    """A package that belongs to an extra is not installed."""


class CheckFailedError(GrdError):
    """A numeric check or a gate did not hold."""

    exit_code = 3


def one_line(error: Exception) -> str:
    """What another library says, on one line."""
    return " ".join(str(error).split())


def failure_of(what: str, failed: Mapping[str, GrdError]) -> InputError:
    """One error of several errors by the name of what each is of, with the largest exit code."""
    summary = InputError(f"{what}: {'; '.join(f'{name}: {error}' for name, error in failed.items())}")
    summary.exit_code = max(error.exit_code for error in failed.values())
    return summary


def require(module: str, *, extra: str, purpose: str):
    """Imports `module`, or says which extra brings it.

    Args:
        module: dotted name of the module.
        extra: extra of the package that installs it, such as `train`.
        purpose: what it is needed for, as the middle of a sentence ("to decode images").

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.split('.')[0]} is needed {purpose} and is not installed ({error}); "
            f"install it with: pip install 'grd-edge[{extra}]'"
        ) from error
