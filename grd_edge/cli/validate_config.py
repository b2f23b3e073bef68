"""`grd-edge validate-config`: is this configuration good, and what does it amount to?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import Json, Profile, Settings, print_json


def validate_config(
    path: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="YAML file over the profile.")] = None,
    profile: Profile = None,
    settings: Settings = None,
    json_: Json = False,
) -> None:
    """Check a configuration and print all of its settings."""
    import yaml

    from grd_edge.config import load_config

    config = load_config(profile=profile, path=path, overrides=settings or ()).to_json()
    print_json(config) if json_ else typer.echo(yaml.safe_dump(config, sort_keys=False).rstrip())
