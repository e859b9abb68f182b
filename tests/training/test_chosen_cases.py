"""Who is trained on and who validates: no person is on both sides."""

from pathlib import Path

import pytest

from palpate.errors import DatasetError, SettingError
from palpate.training.data import cases_for
from palpate.training.recipe import DataRecipe, PromptRecipe, recipe_from


def manifest(folder: Path, *rows: str) -> str:
    for row in rows:
        (folder / f"{row.split(',')[0]}").touch()
    path = folder / "manifest.csv"
    path.write_text("\n".join(["image,label,subject,split,dataset", *rows]) + "\n")
    return str(path)


def test_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.png,a.png,p1,train,ct", "b.png,b.png,p2,val,ct", "c.png,c.png,p3,test,ct")
    train, val = cases_for(DataRecipe(path=path), seed=0)
    assert ([case.subject for case in train], [case.subject for case in val]) == (["p1"], ["p2"])


def test_one_person_in_two_data_sets_and_on_both_sides_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.png,a.png,p1,train,ct", "b.png,b.png,p1,val,mr")
    with pytest.raises(DatasetError, match="p1 is in both splits"):
        cases_for(DataRecipe(path=path), seed=0)


def test_somebody_always_validates_and_with_all_their_images(tmp_path: Path) -> None:
    rows = [f"{name}{i}.png,{name}{i}.png,p{i},,{name}" for i in range(3) for name in ("ct", "mr")]
    train, val = cases_for(DataRecipe(path=manifest(tmp_path, *rows)), seed=0)
    held_out = {case.subject for case in val}
    assert len(held_out) == 1
    assert len(val) == 2
    assert not held_out & {case.subject for case in train}


def test_an_empty_train_takes_everything_and_holds_some_out(tmp_path: Path) -> None:
    rows = [f"{i}.png,{i}.png,p{i},{'test' if i % 2 else 'val'},ct" for i in range(20)]
    train, val = cases_for(DataRecipe(path=manifest(tmp_path, *rows), train=""), seed=0)
    assert (len(train), len(val)) == (18, 2)


@pytest.mark.parametrize(
    ("strategy", "severity", "says"),
    [("standard", 0.3, "knows no severity"), ("expansion", -0.2, "a share from 0 to 1"), ("scale", 2.0, "severity")],
)
def test_a_severity_that_makes_no_sense_is_told_at_once(strategy: str, severity: float, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        recipe_from({"data": {"path": "x"}, "prompts": [{"strategy": strategy, "severity": severity}]})


def test_severities_that_make_sense_are_taken() -> None:
    assert PromptRecipe(strategy="scale", severity=-0.1).severity == -0.1
    assert PromptRecipe(strategy="shrink", severity=(0.0, 0.2)).severity == (0.0, 0.2)


def test_a_window_that_does_not_exist_is_told_before_anything_is_read() -> None:
    with pytest.raises(SettingError, match="windw"):
        recipe_from({"data": {"path": "x", "intensity": "windw"}})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rank": 4}, "rank is of lora, and only decoder is trained; train lora as well"),
        ({"parts": ["decoder"], "where": ["encoder"]}, "where is of bias-norm and lora and adapter"),
        ({"parts": ["lora"], "blocks": 2}, "blocks is of last-blocks"),
    ],
)
def test_a_setting_that_would_do_nothing_was_meant_otherwise(table: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        recipe_from({"data": {"path": "x"}, "trained": table})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"leave_out": ["mr", "retina"]}, "leave_out: there is no data set 'retina'; there are: ct, mr"),
        ({"val": "vla"}, "val: there is no split 'vla'; there are: test, train"),
    ],
)
def test_a_slip_in_a_name_is_told(tmp_path: Path, data: dict[str, object], says: str) -> None:
    rows = [f"{n}{i}.png,{n}{i}.png,p{i},{'test' if i % 2 else 'train'},{n}" for i in range(4) for n in ("ct", "mr")]
    path = manifest(tmp_path, *rows)
    with pytest.raises(DatasetError, match=says):
        cases_for(DataRecipe.model_validate({"path": path, **data}), seed=0)
    # The usual name may be missing: then some of train are held out.
    assert cases_for(DataRecipe(path=path, leave_out=("mr",)), seed=0)[1]


@pytest.mark.parametrize("severity", [10, [0, 25]])
def test_a_severity_in_percent_is_told(severity: object) -> None:
    with pytest.raises(SettingError, match=r"for (10|25) % write 0\.(1|25)"):
        recipe_from({"data": {"path": "x"}, "prompts": [{"strategy": "jitter", "severity": severity}]})


def test_a_large_data_set_is_cut_to_so_many_cases_and_seeds_cut_it_elsewhere(tmp_path: Path) -> None:
    large = [f"l{i}.png,l{i}.png,p{i},train,large" for i in range(30)]
    small = [f"s{i}.png,s{i}.png,q{i},train,small" for i in range(2)]
    path = manifest(tmp_path, *large, *small, "v.png,v.png,v,val,large")
    names: list[list[str]] = []
    for seed in (0, 0, 1):
        train, val = cases_for(DataRecipe(path=path, cases_per_dataset=5), seed=seed)
        assert [case.dataset for case in train] == ["large"] * 5 + ["small"] * 2
        assert [case.subject for case in val] == ["v"]
        names.append([case.name for case in train])
    assert names[0] == names[1] != names[2]
    assert len(cases_for(DataRecipe(path=path), seed=0)[0]) == 32


def test_cases_stay_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    rows = [f"{n}{i}.png,{n}{i}.png,{n}{i},train,{n}" for i in range(4) for n in ("mr", "ct")]
    path = manifest(tmp_path, *rows, "v.png,v.png,v,val,ct")
    wanted = [row.split(",")[2] for row in rows]
    assert [case.subject for case in cases_for(DataRecipe(path=path), seed=0)[0]] == wanted
    some = [case.subject for case in cases_for(DataRecipe(path=path, cases_per_dataset=2), seed=0)[0]]
    assert some == [name for name in wanted if name in some]
    assert len(some) == 4
