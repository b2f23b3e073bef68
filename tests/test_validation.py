"""Early stop: fixed synthetic defects, and what a run does with the figure."""

import pytest
import torch

from grd_edge.config import config_from_mapping
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.train import checkpoint_from_dataset
from grd_edge.validation import PATCHES, Quality, Validator


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts, need_validation=True)


def with_train(config, **values):
    mapping = config.to_json()
    mapping["train"] |= values
    return config_from_mapping(mapping)


class Fake(torch.nn.Module):
    """Reconstructs by a function."""

    def __init__(self, function):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_patches_and_defects_are_fixed_and_every_pair_differs(dataset, tiny_config):
    a, b = Validator(dataset.validation, tiny_config), Validator(dataset.validation, with_train(tiny_config, seed=9))
    assert sum(len(good) for good, _ in a.pairs) >= PATCHES
    for (good, bad), (good_b, bad_b) in zip(a.pairs, b.pairs, strict=True):
        assert torch.equal(good, good_b) and torch.equal(bad, bad_b)
        assert all(not torch.equal(x, y) for x, y in zip(good, bad, strict=True))


def test_quality_is_that_of_the_deciding_score(dataset, tiny_config):
    validator = Validator(dataset.validation, tiny_config)
    identity = validator(Fake(lambda x: x))
    assert identity == Quality(0.5, 0.0)  # every score is 0: nothing can be told apart
    clean = {bad.numpy().tobytes(): good for pair in validator.pairs for good, bad in zip(*pair, strict=True)}
    healer = Fake(lambda x: torch.stack([clean.get(image.numpy().tobytes(), image) for image in x]))
    assert validator(healer) == Quality(1.0, 0.0)
    assert Quality(0.9, -1.0) > Quality(0.8, -0.1) and Quality(1.0, -0.1) > Quality(1.0, -0.2)
    assert Quality(1.0, -0.25).contextual == 0.25


@pytest.fixture
def qualities(monkeypatch):
    """Replaces the measurement by figures that the test sets."""
    figures, given = [], []

    def measure(self, net):
        given.append({key: value.clone() for key, value in net.state_dict().items()})
        return Quality(figures[len(given) - 1], -0.5)

    monkeypatch.setattr(Validator, "__call__", measure)
    return figures, given


def test_the_best_weights_ship_and_patience_ends_the_run(dataset, tiny_config, qualities):
    figures, given = qualities
    figures += [0.6, 0.8, 0.7, 0.8, 0.9]
    config = with_train(tiny_config, steps=20, validate_every=2, patience=2)
    checkpoint = checkpoint_from_dataset(dataset, config)
    assert len(given) == 4  # 0.7 and 0.8 are no better than 0.8
    assert checkpoint.provenance["steps"] == 8 and checkpoint.provenance["planned_steps"] == 20
    assert checkpoint.provenance["validation"] == {"step": 4, "auroc": 0.8, "contextual": 0.5}
    assert all(torch.equal(checkpoint.weights[key], given[1][key]) for key in given[1])


def test_without_patience_the_last_step_is_measured_too(dataset, tiny_config, qualities):
    figures, given = qualities
    figures += [0.9, 0.8, 0.7]
    checkpoint = checkpoint_from_dataset(dataset, with_train(tiny_config, steps=5, validate_every=2, patience=None))
    assert len(given) == 3 and checkpoint.provenance["steps"] == 5
    assert checkpoint.provenance["validation"]["step"] == 2


def test_without_a_validation_split_nothing_is_measured(parts, tiny_config, qualities):
    checkpoint = checkpoint_from_dataset(dataset_from_folder(parts), with_train(tiny_config, validate_every=1))
    assert not qualities[1] and "validation" not in checkpoint.provenance
    assert checkpoint.provenance["validation_images"] == 0


def test_measuring_changes_no_bit_of_the_training(dataset, tiny_config):
    often, never = (
        checkpoint_from_dataset(dataset, with_train(tiny_config, steps=4, validate_every=every, patience=None))
        for every in (1, 100)
    )
    assert often.provenance["losses"] == never.provenance["losses"]
    assert often.provenance["seen"] == never.provenance["seen"]
    assert len(never.provenance["seen"]) == len(dataset.train) + len(dataset.validation)
