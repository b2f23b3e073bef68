"""Recipes are strict data."""

import pytest

from grd_edge.errors import ConfigError
from grd_edge.recipes import RECIPES, load_recipe, recipe_names


def test_each_recipe_that_ships_loads_and_says_why_it_keeps_layers():
    assert set(recipe_names()) == {"default", *RECIPES}
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert name in ("default", recipe.algorithm)
        assert all(reason for reason in recipe.keep.values())
    assert load_recipe() == load_recipe("default")


def test_a_file_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("algorithm: percentile\npercentile: 99.5\nimages: 7\nkeep: {decoder.out: too coarse}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.percentile, recipe.images) == ("mine", 99.5, 7)
    assert recipe.keep == {"decoder.out": "too coarse"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("algorithm: entropi", "'entropi'; did you mean 'entropy'?"),
        ("images: 3", "has no algorithm"),
        ("algorithm: [minmax]", "algorithm ['minmax']"),
        ("algorithm: minmax\nimags: 3", "'mine': unknown setting imags; did you mean 'images'?"),
        ("algorithm: minmax\npercentile: 99", "unknown setting percentile"),
        ("algorithm: percentile\npercentile: 101", "percentile: Input should be less than or equal to 100 (found 101)"),
        ("algorithm: phi\nfactors: []", "factors"),
        ("algorithm: minmax\nimages: 0", "images"),
        ("algorithm: minmax\nkeep: [decoder.out]", "keep"),
        ("algorithm: minmax\nkeep: {decoder.out: ''}", "keep.decoder.out"),
        ("- 1", "holds a list"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_recipes_are_one_sentence(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_recipe(path)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match="no calibration recipe 'minmaxx'; did you mean 'minmax'"):
        load_recipe("minmaxx")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "no.yaml")
