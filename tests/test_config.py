import pytest
import yaml

from grd_edge.config import config_from_mapping, load_config, overlaid_config, profile_names
from grd_edge.errors import ConfigError


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_survives_json(name):
    config = load_config(profile=name)
    assert config.profile == name
    assert config_from_mapping(config.to_json()) == config


def test_overrides_win_over_the_file_and_the_file_over_the_profile(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("profile: deepindustrial_sn\ntrain: {batch: 3, seed: 5}\n", encoding="utf-8")
    config = load_config(path=path, overrides=["train.batch=7"])
    assert (config.profile, config.model.base, config.train.batch, config.train.seed) == (
        "deepindustrial_sn",
        128,
        7,
        5,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.bacth=3"], "train.bacth; did you mean 'batch'"),
        (["trian.batch=3"], "trian; did you mean 'train'"),
        (["train.batch=0"], "train.batch"),
        (["train.batch"], "no '='"),
        (["train.batch=[1"], "not YAML"),
        (["train.steps=5"], "exactly one"),
        (["train.steps=null", "train.seconds=null"], "exactly one"),
        (["model.patch_h=100"], "multiple of 16"),
        (["model.stages=[]"], "stages is empty"),
        (["model.upsampling=bilinear"], "model.upsampling"),
        (["perturbation.beta_min=0.9", "perturbation.beta_max=0.6"], "swap"),
        (["perturbation.textures=[]"], "textures is empty"),
        (["decision.alpha=1"], "decision.alpha"),
        (["train=5"], "train"),
    ],
)
def test_a_bad_setting_is_one_sentence_that_names_it(settings, words):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[1, 2]", "list"), ("a: b: c", "not YAML"), ("profile: edge_sn", "no profile"), ("profile: 3", "no profile")],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_config(path=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path=tmp_path / "missing.yaml")


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(None), encoding="utf-8")
    assert load_config(path=path) == load_config()


def test_settings_of_another_method_do_not_survive_the_name_of_one(tmp_path):
    """A profile's are its method's; those of the layer that names the method are the user's, and are checked."""
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: draem, textures_mb: 12}\n", encoding="utf-8")
    efficient = load_config(profile="efficientad")
    for config in (
        load_config(profile="efficientad", overrides=["method.name=patchcore", "method.bank_mb=3"]),
        load_config(profile="efficientad", overrides=["method.bank_mb=3", "method.name=patchcore"]),
        load_config(path=path, overrides=["method.name=patchcore", "method.bank_mb=3"]),
        overlaid_config(efficient, overrides=["method.name=patchcore", "method.bank_mb=3"]),
    ):
        assert config.method == load_config(overrides=["method.name=patchcore", "method.bank_mb=3"]).method
    assert load_config(profile="efficientad", path=path).method.textures_mb == 12
    named = overlaid_config(efficient, overrides=["method.name=efficientad", "method.p_hard=0.5"]).method
    assert (named.width, named.p_hard) == (efficient.method.width, 0.5)
    with pytest.raises(ConfigError, match=r"unknown setting method\.width"):
        load_config(profile="efficientad", overrides=["method.width=1", "method.name=patchcore"])
