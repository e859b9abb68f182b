import numpy as np
import pytest

from palpate.errors import SettingError
from palpate.evaluation.protocols import all_protocols, dice_for, protocol, targets_for
from phantoms import column, rectangle

BODY = column((10, 32, 32), rectangle((32, 32), 8, 8, 19, 19), 2, 7)
PIXELS = np.where(BODY, 200, 10).astype(np.uint8)


def test_names_are_unique_and_every_protocol_says_what_it_asks():
    known = all_protocols()
    assert len({one.name for one in known}) == len(known)
    assert all(one.says and "," not in one.name and " " not in one.name for one in known)


def test_an_unknown_name_says_where_the_names_are():
    with pytest.raises(SettingError, match="--list"):
        protocol("expension")


def test_a_severity_is_a_fraction():
    with pytest.raises(SettingError, match="for 10 %"):
        protocol("shrink", [10.0])


def test_severities_are_rounded_and_each_is_run_once():
    assert protocol("shrink", [0.1, 0.10, 0.1 + 1e-9, 0.2]).severities == (0.1, 0.2)


def test_protocols_without_severity_ignore_it():
    assert protocol("standard", [0.1, 0.2]).severities == (0.0,)


@pytest.mark.parametrize("name", [one.name for one in all_protocols() if one.kind in ("strategy", "volume")])
@pytest.mark.parametrize("where", ["middle", "every-slice"])
def test_every_protocol_asks_something_on_slices_of_a_volume(name: str, where: str):
    one = protocol(name)
    targets = targets_for(one, BODY, PIXELS, severity=one.severities[0], rng=dice_for(0), is_volume=True, where=where)  # pyright: ignore[reportArgumentType]
    assert targets
    assert all(target.z is not None and 0 <= target.z < 10 for target in targets)


@pytest.mark.parametrize("name", [one.name for one in all_protocols() if one.kind == "strategy"])
def test_on_pictures_prompts_have_no_slice(name: str):
    one = protocol(name)
    targets = targets_for(
        one, BODY[4:5], PIXELS[4:5], severity=one.severities[0], rng=dice_for(0), is_volume=False, where="middle"
    )
    assert [target.z for target in targets] == [None]


def test_dice_depend_on_the_names_alone():
    assert dice_for(1, "a", "b").random() == dice_for(1, "a", "b").random()
    assert dice_for(1, "a", "b").random() != dice_for(2, "a", "b").random()
    assert dice_for(1, "ab").random() != dice_for(1, "a", "b").random()
