"""What the tests of the command line share."""

import pytest

from grd_edge.checkpoint import write_checkpoint


@pytest.fixture
def trained(tiny_checkpoint, tmp_path):
    """Checkpoint of the tiny network."""
    write_checkpoint(tmp_path / "tiny.safetensors", tiny_checkpoint)
    return tmp_path / "tiny.safetensors"
