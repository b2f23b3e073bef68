"""Exports as anomalib 2.x writes them: pre-processor, model and post-processor in one graph, written anew after the
conventions of docs/anomalib.md, and saved by the exporter with the arguments that it uses.
anomalib itself is not needed.
"""

import io
import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
H, W = 32, 48


class InferenceBatch(NamedTuple):
    pred_score: torch.Tensor | None = None
    pred_label: torch.Tensor | None = None
    anomaly_map: torch.Tensor | None = None
    pred_mask: torch.Tensor | None = None


class PreProcessor(nn.Module):
    """Normalize, and Resize where the input is of another size, and CenterCrop."""

    def __init__(self, size=None, crop=None):
        super().__init__()
        self.size, self.crop = size, crop
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        if self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        if self.crop:
            y, x0 = ((have - wanted) // 2 for have, wanted in zip(x.shape[-2:], self.crop, strict=True))
            x = x[..., y : y + self.crop[0], x0 : x0 + self.crop[1]]
        return x.sub(self.mean).div(self.std)


class Model(nn.Module):
    """Features, a low map of distances, brought to `map_size` (None: the input's); `fixed` stores batches of 1."""

    def __init__(self, *, gives=("pred_score", "anomaly_map"), map_size=None, map_rank=4, fixed=False, double=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.center = nn.Parameter(torch.rand(8))
        self.gives, self.map_size, self.map_rank, self.fixed, self.double = gives, map_size, map_rank, fixed, double

    def forward(self, x):
        f = self.net(x)
        if self.fixed:
            f = f.reshape(1, 8, H // 4 * (W // 4)).reshape(1, 8, H // 4, W // 4)
        distances = (f - self.center.view(1, -1, 1, 1)).pow(2).sum(1, keepdim=True)
        maps = F.interpolate(distances, size=self.map_size or x.shape[-2:], mode="bilinear", align_corners=False)
        score = distances.amax((1, 2, 3)) + distances.mean((1, 2, 3))
        maps = maps if self.map_rank == 4 else maps.squeeze(1)
        if self.double:
            maps, score = maps.double(), score.double()
        return InferenceBatch(
            pred_score=score if "pred_score" in self.gives else None,
            anomaly_map=maps if "anomaly_map" in self.gives else None,
        )


class PostProcessor(nn.Module):
    """Normalization to a threshold of 0.5, clamped to [0, 1], and labels: anomalous above 1 - sensitivity.

    `shifted`: the later way, in which sensitivities are inputs and shift the threshold before the normalization.
    """

    def __init__(self, score=(3.0, 5.0, 3.5), pixel=(1.0, 2.5, 1.8), sensitivity=0.5, normalize=True, shifted=False):
        super().__init__()
        self.clips = True
        for name, values in (("image", score), ("pixel", pixel)):
            for part, value in zip(("min", "max", "threshold"), values, strict=True):
                self.register_buffer(f"{name}_{part}", torch.tensor(value))
        self.sensitivity, self.normalize, self.shifted = sensitivity, normalize, shifted

    def _normalized(self, name, values, sensitivity):
        if values is None or not self.normalize:
            return values
        low, high, threshold = (getattr(self, f"{name}_{part}") for part in ("min", "max", "threshold"))
        if self.shifted:
            threshold = threshold + (high - low) * (0.5 - sensitivity.clamp(0.0, 1.0))
        values = ((values - threshold) / (high - low)) + 0.5
        return values.clamp(min=0, max=1) if self.clips else values

    def forward(self, batch, image_sensitivity=None, pixel_sensitivity=None):
        maps = batch.anomaly_map
        score = batch.pred_score if batch.pred_score is not None else torch.amax(maps, dim=(-2, -1))
        score = self._normalized("image", score, image_sensitivity)
        maps = self._normalized("pixel", maps, pixel_sensitivity)
        limit = torch.tensor(0.5) if self.shifted else torch.tensor(1.0) - self.sensitivity
        return InferenceBatch(score, score > limit, maps, None if maps is None else maps > limit)


class AnomalibModule(nn.Module):
    def __init__(self, model, pre=None, post=None):
        super().__init__()
        self.model, self.pre, self.post = model, pre, post

    def forward(self, batch, image_sensitivity=None, pixel_sensitivity=None):
        found = self.model(self.pre(batch) if self.pre else batch)
        return self.post(found, image_sensitivity, pixel_sensitivity) if self.post else found


def module(*, pre=True, post=True, seed=0, **model):
    """A module with random weights that spread its scores; pre and post: a processor, or True for the usual one."""
    torch.manual_seed(seed)
    pre = PreProcessor() if pre is True else pre or None
    post = PostProcessor() if post is True else post or None
    made = AnomalibModule(Model(**model), pre, post).eval()
    norm = made.model.net[1]
    norm.running_mean.uniform_(-0.2, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    return made


def exported(made, *, size=(H, W), static=False, opset=14, dynamo=False):
    """Bytes of the file: named outputs that are not None, and a free batch; size None leaves height and width open."""
    shifted = made.post is not None and made.post.shifted
    extra = (torch.tensor(0.5), torch.tensor(0.5)) if shifted else ()
    inputs = ["input", *(("image_sensitivity", "pixel_sensitivity") if shifted else ())]
    example = torch.zeros(1, 3, *(size or (H, W)))
    with torch.no_grad():
        outputs = [name for name, value in made(example, *extra)._asdict().items() if value is not None]
    axes = {"input": {0: "batch_size"} if size else {0: "batch_size", 2: "height", 3: "width"}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"dynamic_axes": {} if static else axes} if not dynamo else {}
        if dynamo:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch_size", min=1)}, *[None] * len(extra))
        program = torch.onnx.export(
            made,
            (example, *extra),
            buffer if not dynamo else None,
            opset_version=opset,
            dynamo=dynamo,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
            **options,
        )
    if dynamo:
        program.save(buffer)
    return buffer.getvalue()
