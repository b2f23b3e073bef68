"""Who competes: names, settings of all and of one, patches that the images hold, and the time that each gets."""

from __future__ import annotations

import pytest

from grd_edge.config import profile_names
from grd_edge.contenders import (
    BUILD_S,
    Contender,
    TimePlan,
    contenders_from_text,
    expected_build_s,
    fitted,
    profiles_of_all,
    shared_seconds,
)
from grd_edge.data.headers import Header
from grd_edge.errors import ConfigError, InputError
from grd_edge.models.method import METHODS

EDGE = "deepindustrial_sn_edge"


def headers(*sizes: tuple[int, int], channels: int = 3) -> list[Header]:
    return [Header(h, w, channels, "uint8") for h, w in sizes]


def contender(*settings: str, name: str = EDGE) -> Contender:
    return contenders_from_text(name, settings=settings)[0]


def patch(found: Contender) -> tuple[int, int]:
    return found.config.model.patch_h, found.config.model.patch_w


def test_all_are_those_for_minutes():
    names = profiles_of_all()
    assert names[0] == EDGE and "deepindustrial_sn" not in names
    assert set(names) <= set(profile_names()) and len(set(names)) == len(names)
    assert [each.name for each in contenders_from_text(" all ")] == names


def test_settings_of_all_and_of_one():
    found = contenders_from_text(f"generator, wide={EDGE}", settings=["train.batch=2", "wide:model.base=32"])
    assert [(each.name, each.config.model.base, each.config.train.batch) for each in found] == [
        ("generator", 16, 2),
        ("wide", 32, 2),
    ]
    assert found[1].config.profile == EDGE and found[1].timed
    assert not contender("train.seconds=null", "train.steps=3").timed
    assert found[0].within(7.5).train.seconds == 7.5 and found[0].within(None) == found[0].config


def test_a_configuration_file_is_over_each_profile(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("train: {batch: 3}\n")
    assert [each.config.train.batch for each in contenders_from_text(f"{EDGE},b={EDGE}", path=path)] == [3, 3]


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        ("deepindustrial", [], r"there is no method 'deepindustrial'; did you mean 'deepindustrial_sn'\?"),
        (f"{EDGE},{EDGE}", [], r"is given twice; name the second one otherwise, as other=deepindustrial_sn_edge"),
        (f"a/b={EDGE}", [], r"the name 'a/b' would be a folder's"),
        (f"..={EDGE}", [], r"the name '\.\.' would be a folder's"),
        (" , ", [], r"no methods were named; give 'all' or some of "),
        (EDGE, ["model.bas=3"], r"^deepindustrial_sn_edge: unknown setting model\.bas; did you mean 'base'\?"),
        (f"a={EDGE}", ["b:model.base=3"], r"is for 'b', which is not compared; known: a"),
        (f"a={EDGE}", ["model.base"], r"^a: setting 'model\.base' has no '='"),
        (f"a={EDGE},b={EDGE}", ["b:train.seed=1"], r"train\.seed is 0 of a and 1 of b"),
    ],
)
def test_what_cannot_compete(text, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        contenders_from_text(text, settings=settings)


# ------------------------------------------------------------------------------------------------ the images


@pytest.mark.parametrize(
    ("sizes", "settings", "expected"),
    [
        ([(128, 128), (300, 200)], (), (128, 128)),
        ([(127, 300)], (), (112, 128)),
        ([(128, 63), (90, 200)], (), (80, 48)),  # the least of each axis
        ([(16, 17)], (), (16, 16)),
        ([(50, 60)], ("geometry.scale_px=128",), (128, 128)),  # enlarged
        ([(500, 600)], ("geometry.scale_px=100",), (96, 112)),
        ([(50, 60)], ("geometry.padding=reflect",), (128, 128)),
        ([(100, 100)], ("model.stages=[1, 1]",), (100, 100)),  # a multiple of 4 does
    ],
)
def test_the_largest_patch_that_the_images_hold(sizes, settings, expected):
    before = contender(*settings)
    found = fitted(before, headers(*sizes))
    assert patch(found) == expected
    assert bool(found.notes) == (patch(before) != expected)
    if found.notes:
        assert f"patches have {expected[0]}x{expected[1]} px in place of 128x128" in found.notes[0]
    else:
        assert found.config == before.config


def test_a_stride_beyond_the_patch_goes():
    found = fitted(contender("geometry.stride_y=64", "geometry.stride_x=32"), headers((48, 200)))
    assert patch(found) == (48, 128)
    assert found.config.geometry.stride_y is None and found.config.geometry.stride_x == 32


def test_a_method_may_refuse_patches(monkeypatch):
    """Sizes are tried downwards until its class takes one."""
    import grd_edge.contenders as contenders

    tried = []

    def of_fourteen(config):
        tried.append(config.model.patch_h)
        if config.model.patch_h % 14:
            raise ConfigError("patches are multiples of 14 px")

    monkeypatch.setattr(contenders, "method_from_config", of_fourteen)
    method = Contender(
        "a", contender("model.patch_h=224", "model.patch_w=224", f"method={{name: {next(iter(METHODS))}}}").config
    )
    assert patch(fitted(method, headers((200, 210)))) == (112, 112)
    assert tried == [192, 192, 176, 160, 144, 128, 112]
    with pytest.raises(
        InputError, match=r"100x90 px at working scale, which hold no patch that a takes; set --set a:geo"
    ):
        fitted(method, headers((100, 90)))


def test_images_without_room_for_any_patch():
    with pytest.raises(InputError, match=r"15x300 px at working scale, which hold no patch"):
        fitted(contender(), headers((15, 300)))


def test_channels_follow_the_images():
    rgb = contender("model.channels=3")
    assert fitted(rgb, headers((200, 200))).config.model.channels == 3
    grey = fitted(rgb, headers((200, 200), channels=1))
    assert grey.config.model.channels == 1 and grey.notes == ("images are grey, so it takes 1 channel in place of 3",)
    assert fitted(contender(), headers((200, 200))).config.model.channels == 1  # color becomes grey


# -------------------------------------------------------------------------------------------------- the time


@pytest.mark.parametrize(
    ("pool", "caps", "shares"),
    [
        (90, {"a": 100, "b": 100, "c": 100}, {"a": 30, "b": 30, "c": 30}),
        (90, {"a": 100, "b": 10, "c": 100}, {"a": 40, "b": 10, "c": 40}),
        (900, {"a": 100, "b": 10}, {"a": 100, "b": 10}),
        (0, {"a": 1}, {"a": 0}),
        (-5, {"a": 1, "b": 2}, {"a": 0, "b": 0}),
        (9, {}, {}),
    ],
)
def test_shares(pool, caps, shares):
    assert shared_seconds(pool, caps) == pytest.approx(shares) and list(shared_seconds(pool, caps)) == list(caps)


def test_what_a_method_takes_besides_follows_from_images_and_network():
    few, many = headers((128, 128)), headers((128, 128)) * 40
    small = contender("model.base=2", "model.patch_h=64", "model.patch_w=64", "geometry.scale_px=null")
    large = contender("model.base=8", "model.patch_h=64", "model.patch_w=64", "geometry.scale_px=null")
    assert BUILD_S < expected_build_s(small, few) < expected_build_s(small, many)
    assert expected_build_s(large, many) > expected_build_s(small, many)
    assert expected_build_s(small, headers((32, 32))) == BUILD_S  # no patch fits, which its turn tells


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_plan_follows_what_is_left():
    clock = Clock()
    plan = TimePlan(
        300, {"bank": None, "a": 500, "b": 500}, count=3, built_s=dict.fromkeys(("bank", "a", "b"), 20), clock=clock
    )
    assert plan.planned == {"a": 120, "b": 120} and plan.seconds_of("bank") is None
    clock.now += 50  # of which 30 were its fit
    plan.done("bank", 20)
    assert plan.seconds_of("a") == pytest.approx((250 - 40) / 2)
    clock.now += 105 + 60  # its build took three times as long as was thought
    plan.done("a", 60)
    assert plan.seconds_of("b") == pytest.approx(85 - 40)  # twice what was expected, so far
    clock.now += 500
    assert plan.seconds_of("b") == 5  # never nothing
    plan.done("b", None)


def test_methods_that_are_complete_have_had_their_share():
    """Who adds one method to two complete ones gives it as long as these had."""
    built_s = dict.fromkeys("abc", 20)
    whole = TimePlan(300, {"a": 500, "b": 500, "c": 500}, count=3, built_s=built_s, clock=Clock())
    added = TimePlan(300, {"c": 500}, count=3, built_s=built_s, clock=Clock())
    assert added.planned["c"] == whole.planned["c"] == 80


def test_too_little_time_says_how_much_is_needed():
    built_s = {"a": 30, "b": 60}
    with pytest.raises(
        InputError,
        match=r"1 minutes leave a 0 s to train in, as 2 methods take about 45 s each besides, and 0 s are for what "
        r"comes after them; give at least 2 minutes",
    ):
        TimePlan(60, {"a": 500, "b": 500}, count=2, built_s=built_s)
    needed = TimePlan(120, {"a": 500, "b": 500}, count=2, built_s=built_s)
    with pytest.raises(
        InputError, match=r"2 minutes leave a 0 s .* 260 s are for .*; give at least 7 minutes, or name fewer methods"
    ):
        TimePlan(120, {"a": 500, "b": 500}, count=2, built_s=built_s, after_s=260)
    TimePlan(420, {"a": 500, "b": 500}, count=2, built_s=built_s, after_s=260)
    assert needed.planned == pytest.approx({"a": 15, "b": 15}, abs=0.1)
    assert TimePlan(60, {"a": 2.0}, count=1, built_s=built_s).planned == {"a": 2.0}
