"""Processes of a training: Lightning Fabric started from a configuration, and what they agree on.

Several processes run the same command; Fabric starts those of this machine, torchrun or SLURM may do so instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning_fabric import Fabric

from grd_edge.config import Config
from grd_edge.errors import ConfigError, GrdError, InputError

T = TypeVar("T")
NODE_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")  # set by torchrun and SLURM, which bring the rest


def fabric_from_config(config: Config) -> Fabric:
    """Launched Fabric of `train.accelerator`, `devices`, `num_nodes` and `precision`.

    With several devices this starts the other processes of this machine: they run the same command line again.

    Raises:
        ConfigError: the batch cannot be split evenly, or 16-mixed without a GPU.
        InputError: GPUs that are not there, or several machines that do not know each other.
    """
    train = config.train
    world = train.devices * train.num_nodes
    cuda = torch.cuda.is_available() and train.accelerator != "cpu"
    if train.batch % world:
        raise ConfigError(
            f"a batch of {train.batch} cannot be split over {world} processes; "
            f"set train.batch to a multiple of {world}, such as {-(-train.batch // world) * world}"
        )
    if train.accelerator == "cuda" and not cuda:
        raise InputError("train.accelerator is 'cuda', but PyTorch finds no GPU; use --accelerator cpu")
    if cuda and train.devices > torch.cuda.device_count():
        raise InputError(f"{train.devices} devices are asked for, {torch.cuda.device_count()} are there; use fewer")
    if train.precision == "16-mixed" and not cuda:
        raise ConfigError(
            "precision 16-mixed needs a GPU, on a CPU float16 is slower than float32; use bf16-mixed or 32-true"
        )
    missing = [name for name in NODE_VARIABLES if name not in os.environ]
    if train.num_nodes > 1 and missing and not any(name in os.environ for name in LAUNCHERS):
        raise InputError(
            f"{train.num_nodes} machines need {', '.join(NODE_VARIABLES)} in the environment of each, "
            f"and {', '.join(missing)} is not set; set them, or start with torchrun"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=train.devices,
        num_nodes=train.num_nodes,
        strategy="ddp" if world > 1 else "auto",
        precision=train.precision,
    )
    fabric.launch()
    return fabric


def on_first_process(fabric: Fabric, function: Callable[[], T]) -> T:
    """Result of `function`, run by the first process alone; where it raises, all processes raise the same.

    The result travels to the others, so it is small and plain.
    """
    if fabric.world_size == 1:
        return function()
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = function()
        except (GrdError, OSError) as raised:
            error = raised
    result, failed = fabric.broadcast((result, error))
    if failed is not None:
        raise error or failed  # the first process keeps its own, with its cause
    return result
