"""Who competes in `grd-edge compare`: methods with their configurations, fitted to the images, and the time they get.

Source: docs/compare.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from grd_edge.config import DEFAULT_PROFILE, Config, load_config, nearest, overlaid_config, profile_names
from grd_edge.data.dataset import SPLITS, Dataset
from grd_edge.data.frames import grid_from_config
from grd_edge.data.headers import Header, read_header
from grd_edge.data.workers import in_threads
from grd_edge.errors import ConfigError, GrdError, InputError
from grd_edge.method_config import GENERATOR
from grd_edge.models.method import method_from_config
from grd_edge.models.segmentor import reconstructor_from_config
from grd_edge.patches import working_size

ALL = "all"
LEAST_TRAIN_S = 5.0
BUILD_S = 10.0  # of a method in FP32 besides training and scoring, on 2 cores
ENGINE_SHARE = 0.6  # of PyTorch's time for a patch: what an FP32 engine takes, heatmap and figures included
TIMED_PATCHES = 8
MARGIN = 1.1  # of the minutes that are named where there are too few: the next call times the networks anew
EDGE = "_edge"  # end of the name of a profile that is another one made for minutes and small machines


@dataclass(frozen=True)
class Contender:
    """A method that is compared.

    Attributes:
        name: what it is called in this comparison, and its folder.
        notes: what was changed of its configuration so that it takes the images, in sentences.
    """

    name: str
    config: Config
    notes: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether seconds bound its training: it has steps, and their number is not given."""
        if self.config.train.seconds is None:
            return False
        return self.config.method.name == GENERATOR or bool(method_from_config(self.config).groups())

    def within(self, seconds: float | None) -> Config:
        """The configuration with a time budget; None: as it is."""
        if seconds is None:
            return self.config
        return overlaid_config(self.config, overrides=["train.steps=null", f"train.seconds={seconds}"])


def profiles_of_all() -> list[str]:
    """Profiles that `all` names, the default one first: those of minutes, where a profile has such a form."""
    names = profile_names()
    small = [name for name in names if name + EDGE not in names]
    return sorted(small, key=lambda name: name != DEFAULT_PROFILE)


def contenders_from_text(text: str, *, path: Path | None = None, settings: Iterable[str] = ()) -> list[Contender]:
    """Contenders from `all` or from names with commas between them.

    Args:
        text: a name is a profile's or a method's; `name=profile` takes a profile under a name of one's own.
        path: YAML file over the profile of each.
        settings: `section.key=value` for all, or `name:section.key=value` for one of them.

    Raises:
        ConfigError: no or unknown names, one twice, settings for who does not compete, or that do not hold.
    """
    profiles = _profiles(text)
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in profiles}
    for setting in settings:
        owner, colon, _ = setting.partition("=")[0].partition(":")
        if not colon:
            common.append(setting)
        elif owner not in own:
            raise ConfigError(f"setting {setting!r} is for {owner!r}, which is not compared{nearest(owner, list(own))}")
        else:
            own[owner].append(setting[len(owner) + 1 :])
    found = []
    for name, profile in profiles.items():
        try:
            config = load_config(profile=profile, path=path, overrides=(*common, *own[name]))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error} (for one method alone: --set {name}:KEY=VALUE)") from error
        found.append(Contender(name, config))
    _check_seeds(found)
    return found


def _profiles(text: str) -> dict[str, str]:
    """Name -> profile."""
    if text.strip() == ALL:
        return {name: name for name in profiles_of_all()}
    known, found = profile_names(), dict[str, str]()
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, profile = word.partition("=")
        profile = profile or (DEFAULT_PROFILE if name == GENERATOR else name)
        if profile not in known:
            raise ConfigError(f"there is no method {profile!r}{nearest(profile, [*known, GENERATOR])}")
        if name in found:
            raise ConfigError(f"the method {name!r} is given twice; name the second one otherwise, as other={profile}")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"the name {name!r} would be a folder's; take letters, digits, - and _")
        found[name] = profile
    if not found:
        raise ConfigError(f"no methods were named; give {ALL!r} or some of {', '.join(known)}")
    return found


def _check_seeds(contenders: Sequence[Contender]) -> None:
    """The seed draws the split, which all must share."""
    first = contenders[0]
    for each in contenders:
        if each.config.train.seed != first.config.train.seed:
            raise ConfigError(
                f"train.seed is {first.config.train.seed} of {first.name} and {each.config.train.seed} of {each.name}, "
                "and it draws the split that all share; set it for all"
            )


# ------------------------------------------------------------------------------------------------ the images


def headers_of(dataset: Dataset, splits: Sequence[str] = SPLITS) -> list[Header]:
    """Headers of the images of a dataset's splits."""
    return in_threads(lambda sample: read_header(sample.path), [s for split in splits for s in getattr(dataset, split)])


def fitted(contender: Contender, headers: Sequence[Header]) -> Contender:
    """The contender with the largest patch that all images hold, and grey where an image is.

    A patch is at most the profile's, a multiple of what its stages need, and one that the method takes. Nothing is
    changed where images are padded to a patch, or scaled to it.

    Raises:
        InputError: the images hold no such patch.
    """
    config, notes = contender.config, []
    if config.model.channels == 3 and any(header.channels == 1 for header in headers):
        config = overlaid_config(config, overrides=["model.channels=1"])
        notes.append("images are grey, so it takes 1 channel in place of 3")
    sizes = [working_size(header.h, header.w, config.geometry.scale_px) for header in headers]
    model, least = config.model, [min(extents) for extents in zip(*sizes, strict=True)]
    if config.geometry.padding == "error" and (least[0] < model.patch_h or least[1] < model.patch_w):
        config = _with_patch(contender.name, config, *least)
        now = config.model
        notes.append(
            f"the smallest image has {least[0]}x{least[1]} px at working scale, so patches have "
            f"{now.patch_h}x{now.patch_w} px in place of {model.patch_h}x{model.patch_w}"
        )
    return replace(contender, config=config, notes=(*contender.notes, *notes))


def _with_patch(name: str, config: Config, h: int, w: int) -> Config:
    """The configuration with the largest patch of at most h x w px that it and its method take."""
    step, model = 2 ** len(config.model.stages), config.model
    largest = min(model.patch_h, h) // step * step, min(model.patch_w, w) // step * step
    for side in range(max(largest), 0, -step):
        patch_h, patch_w = (min(extent, side) for extent in largest)
        if not min(patch_h, patch_w):
            break
        strides = {"stride_y": (config.geometry.stride_y, patch_h), "stride_x": (config.geometry.stride_x, patch_w)}
        lost = [f"geometry.{key}=null" for key, (stride, patch) in strides.items() if (stride or 0) > patch]
        sizes = [f"model.patch_h={patch_h}", f"model.patch_w={patch_w}"]
        try:
            # Both at once, since a stride may not be beyond its patch.
            tried = overlaid_config(config, overrides=[*sizes, *lost])
            grid_from_config(tried)
            if tried.method.name != GENERATOR:
                method_from_config(tried)
            return tried
        except ConfigError:
            continue
    raise InputError(
        f"the smallest image has {h}x{w} px at working scale, which hold no patch that {name} takes; "
        f"set --set {name}:geometry.scale_px=… so that images are enlarged, or --set {name}:geometry.padding=reflect"
    )


# -------------------------------------------------------------------------------------------------- the time


def expected_build_s(contender: Contender, scored: Sequence[Header]) -> float:
    """Seconds that a method takes besides its training, in FP32, from timing its network with random weights.

    Args:
        scored: headers of the images that are scored: those of calibration and test.
    """
    config = contender.config
    try:
        generator = config.method.name == GENERATOR
        net = (reconstructor_from_config(config) if generator else method_from_config(config)).eval()
        grid = grid_from_config(config)
        shapes = [grid.shape(*working_size(each.h, each.w, config.geometry.scale_px)) for each in scored]
    except GrdError:  # which its turn tells
        return BUILD_S
    model, seconds = config.model, []
    with torch.inference_mode():
        x = torch.rand(TIMED_PATCHES, model.channels, model.patch_h, model.patch_w)
        for patches in (x[:1], x, x):
            began = time.perf_counter()
            net(patches)
            seconds.append(time.perf_counter() - began)
    patches = sum(rows * columns for rows, columns in shapes)
    return BUILD_S + ENGINE_SHARE * patches * min(seconds[1:]) / TIMED_PATCHES


def shared_seconds(pool: float, caps: Mapping[str, float]) -> dict[str, float]:
    """Shares of `pool` seconds, equal but for those whose cap is less; what these leave goes to the others.

    Returns:
        name -> seconds >= 0, at most its cap, in the order of `caps`.
    """
    shares: dict[str, float] = {}
    left = max(0.0, pool)
    for index, name in enumerate(sorted(caps, key=caps.__getitem__)):
        shares[name] = min(caps[name], left / (len(caps) - index))
        left -= shares[name]
    return {name: shares[name] for name in caps}


class TimePlan:
    """Seconds of training per method, so that all of them take about so long in all.

    A method gets its equal share of what is left when its turn comes: what others took longer, or did not need, counts.
    Methods that are complete from an earlier call have had their share.

    Args:
        seconds: for all methods that are compared, `count` of them, and `after_s` of them for what comes after these.
        caps: the methods that are still to be made, in order; seconds beyond which training is not worth it, None: it
            has no seconds to be given.
        built_s: what each of them is expected to take besides its training; what was measured so far corrects all.
        clock: seconds that pass.

    Attributes:
        planned: name -> seconds, as of now; the plan for users.

    Raises:
        InputError: less than `LEAST_TRAIN_S` of training each.
    """

    def __init__(
        self,
        seconds: float,
        caps: Mapping[str, float | None],
        *,
        count: int,
        built_s: Mapping[str, float],
        after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.caps, self._built_s, self._clock = dict(caps), built_s, clock
        self._done: dict[str, float] = {}  # what they took
        part = len(caps) / max(1, count)
        self._deadline = clock() + (seconds - after_s) * part
        self.planned = self._shares()
        if short := [name for name, share in self.planned.items() if share < min(LEAST_TRAIN_S, self.caps[name])]:
            needed = MARGIN * ((self._besides() + LEAST_TRAIN_S * len(self.planned)) / part + after_s)
            raise InputError(
                f"{seconds / 60:.3g} minutes leave {short[0]} {max(0.0, self.planned[short[0]]):.0f} s to train in, as "
                f"{len(caps)} methods take about {self._besides() / len(caps):.0f} s each besides, and {after_s:.0f} s "
                f"are for what comes after them; give at least {math.ceil(needed / 60)} minutes, or name fewer methods"
            )

    def _besides(self) -> float:
        """What the methods that are left take besides their training."""
        expected = sum(self._built_s[name] for name in self._done)
        correction = sum(self._done.values()) / expected if expected else 1.0
        return correction * sum(self._built_s[name] for name in self.caps)

    def _shares(self) -> dict[str, float]:
        left = self._deadline - self._clock() - self._besides()
        return shared_seconds(left, {name: cap for name, cap in self.caps.items() if cap is not None})

    def seconds_of(self, name: str) -> float | None:
        """What a method gets whose turn is now; None: it has no seconds to be given."""
        share = self._shares().get(name)
        return share if share is None else max(share, min(LEAST_TRAIN_S, self.caps[name]))

    def done(self, name: str, built_s: float | None) -> None:
        """A method is done, or failed: None."""
        self.caps.pop(name)
        if built_s is not None:
            self._done[name] = built_s
