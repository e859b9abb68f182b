"""Numbers with their uncertainty: worked by hand, or held against SciPy."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_runs import row, rows_of
from scipy import stats

from palpate.errors import DatasetError, SettingError
from palpate.evaluation.statistics import (
    Resampler,
    against,
    calibration,
    clicks_needed,
    estimate,
    holm,
    interval,
    is_error,
    is_miss,
    matched,
    paired,
    risk_coverage,
    size_class,
    subject_values,
    value_of,
    weights,
)
from palpate.evaluation.table import Row

NAN, INF = math.nan, math.inf


@pytest.fixture
def resampler(rng: np.random.Generator) -> Resampler:
    return Resampler(rng)


def people(*values: float, dataset: str = "liver", measure: str = "dice") -> list[Row]:
    return [row(dataset=dataset, subject=f"s{i}", **{measure: float(value)}) for i, value in enumerate(values)]


class TestTheEstimator:
    def test_each_subject_counts_once_whatever_it_brings(self, resampler: Resampler) -> None:
        # One subject with two cases, one of them with two objects, one of these with three seeds; and another subject.
        rows = [
            *(row(case="c1", object="1", seed=seed, dice=dice) for seed, dice in enumerate((0.1, 0.2, 0.3))),
            row(case="c1", object="2", dice=0.6),
            row(case="c2", dice=0.8),
            row(subject="s2", dice=0.4),
        ]
        # c1: (0.2 + 0.6) / 2 = 0.4; s1: (0.4 + 0.8) / 2 = 0.6; all: (0.6 + 0.4) / 2
        assert subject_values(rows, "dice") == {"liver": {"s1": pytest.approx(0.6), "s2": pytest.approx(0.4)}}
        assert estimate(rows, "dice", resampler).estimate == pytest.approx(0.5)

    def test_slices_are_parts_of_their_object(self, resampler: Resampler) -> None:
        # Three slices of one object and one of another: the objects count equally, not the slices.
        rows = [
            *(row(object=f"1@{z}", seed=seed, dice=dice) for z, dice in ((3, 0.2), (4, 0.6)) for seed in range(2)),
            row(object="1@5", dice=1.0),
            row(object="2@4", dice=0.2),
        ]
        # Object 1: (0.2 + 0.6 + 1.0) / 3 = 0.6, object 2: 0.2.
        assert estimate(rows, "dice", resampler).estimate == pytest.approx(0.4)
        # An object of one slice weighs a half; of the other, each of two slices with two seeds a twelfth.
        assert 1 / weights(rows) == pytest.approx([12, 12, 12, 12, 6, 2])

    def test_each_dataset_counts_once(self, resampler: Resampler) -> None:
        rows = [*people(0.2, 0.4, 0.6), row(dataset="polyps", subject="p1", dice=0.8)]
        assert estimate(rows, "dice", resampler).estimate == pytest.approx((0.4 + 0.8) / 2)

    def test_undefined_rows_are_left_out(self, resampler: Resampler) -> None:
        rows = [*people(0.2, NAN, 0.4), row(subject="s0", case="c2", dice=NAN)]
        found = estimate(rows, "dice", resampler)
        assert (found.estimate, found.subjects) == (pytest.approx(0.3), 2)

    def test_distances_that_may_be_infinite_are_medians(self, resampler: Resampler) -> None:
        found = estimate(people(1, 2, 3, INF, INF, measure="hd95"), "hd95", resampler)
        assert (found.estimate, found.low, found.high) == (3, 1, INF)
        assert estimate(people(INF, INF, INF, measure="hd95"), "hd95", resampler).estimate == INF

    def test_the_order_of_rows_leaves_no_trace(self, rng: np.random.Generator) -> None:
        rows = [item for item in rows_of(rng) if item.protocol == "shift"]
        turned = estimate(rows[::-1], "dice", Resampler(np.random.default_rng(3)))
        assert turned == estimate(rows, "dice", Resampler(np.random.default_rng(3)))

    def test_nothing_gives_nothing(self, resampler: Resampler) -> None:
        found = estimate([], "dice", resampler)
        assert math.isnan(found.estimate)
        assert not found.is_known

    def test_a_measure_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(SettingError, match="no measure 'beauty'; take dice, iou"):
            value_of(row(), "beauty")


class TestIntervals:
    def test_bca_is_that_of_scipy_to_the_last_digit(self, resampler: Resampler, rng: np.random.Generator) -> None:
        sample = rng.beta(5, 1, size=23)
        found = interval({"liver": {f"s{i:02}": value for i, value in enumerate(sample)}}, resampler)
        drawn = sample @ resampler.counts(23) / 23
        theirs = stats.bootstrap(
            (sample,),
            np.mean,
            method="BCa",
            n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=drawn),
        ).confidence_interval
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)

    def test_and_with_draws_of_its_own_nearly(self, resampler: Resampler, rng: np.random.Generator) -> None:
        sample = rng.beta(5, 1, size=40)
        found = interval({"liver": {f"s{i:02}": value for i, value in enumerate(sample)}}, resampler)
        theirs = stats.bootstrap((sample,), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
        error = sample.std(ddof=1) / math.sqrt(40)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * error)

    def test_two_datasets_are_two_samples_for_scipy(self, resampler: Resampler, rng: np.random.Generator) -> None:
        one, two = rng.beta(5, 1, size=12), rng.beta(2, 1, size=20)
        values = {"a": {f"a{i:02}": v for i, v in enumerate(one)}, "b": {f"b{i:02}": v for i, v in enumerate(two)}}
        drawn = (one @ resampler.counts(12, 0) / 12 + two @ resampler.counts(20, 1) / 20) / 2

        def middle(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
            return (a.mean(axis=axis) + b.mean(axis=axis)) / 2

        theirs = stats.bootstrap(
            (one, two),
            middle,
            method="BCa",
            n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=drawn),
        ).confidence_interval
        found = interval(values, resampler)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert found.subjects == 32

    def test_a_patient_imaged_three_times_is_one_subject(self, resampler: Resampler, rng: np.random.Generator) -> None:
        sample = rng.normal(0.7, 0.1, size=15)
        one = {f"s{i:02}": value for i, value in enumerate(sample)}
        # The same values in three datasets tell nothing new: three times the rows, the same interval.
        alone, thrice = interval({"ct": one}, resampler), interval({"ct": one, "pet": one, "mr": one}, resampler)
        assert thrice.subjects == 15
        assert (thrice.low, thrice.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
        # Different people with these values would tell more.
        other = {name: {f"{name} {subject}": v for subject, v in one.items()} for name in ("ct", "pet", "mr")}
        strangers = interval(other, resampler)
        assert strangers.high - strangers.low < 0.7 * (alone.high - alone.low)

    def test_a_chain_of_shared_subjects_is_one_stratum(self, resampler: Resampler) -> None:
        values = {"a": {"1": 0.1, "2": 0.2}, "b": {"3": 0.3, "4": 0.4}, "c": {"2": 0.5, "3": 0.6}}
        found = interval(values, resampler)
        assert (found.subjects, found.fixed) == (4, 0)
        assert found.estimate == pytest.approx((0.15 + 0.35 + 0.55) / 3)

    def test_one_subject_has_no_interval(self, resampler: Resampler) -> None:
        found = interval({"liver": {"s1": 0.7}}, resampler)
        assert found.estimate == 0.7
        assert math.isnan(found.low)
        assert math.isnan(found.high)

    def test_datasets_of_one_subject_are_taken_as_certain_and_counted(self, resampler: Resampler) -> None:
        values = {"atlas": {"colin": 0.5}, "liver": {f"s{i}": 0.1 * i for i in range(9)}}
        found = interval(values, resampler)
        assert found.fixed == 1
        assert found.is_frail

    @pytest.mark.parametrize(("subjects", "frail"), [(2, True), (7, True), (8, False)])
    def test_few_subjects_are_a_warning(self, resampler: Resampler, subjects: int, frail: bool) -> None:
        values = {f"s{i}": 0.1 * i for i in range(subjects)}
        assert interval({"liver": values}, resampler).is_frail is frail

    def test_subjects_that_are_all_alike_fall_back_to_percentiles(self, resampler: Resampler) -> None:
        found = interval({"liver": {f"s{i}": 0.3 for i in range(9)}}, resampler)
        assert (found.low, found.high) == pytest.approx((0.3, 0.3))

    @pytest.mark.parametrize("divisor", [3, 7, 1e6, 1e14])
    def test_a_third_of_the_values_has_a_third_of_the_interval(self, resampler: Resampler, divisor: float) -> None:
        # Clicks of 13 subjects: more than a thousand resamples have exactly their mean, 14/13, which no float is.
        clicks = (0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2)
        whole = interval({"d": {f"s{i:02}": float(value) for i, value in enumerate(clicks)}}, resampler)
        part = interval({"d": {f"s{i:02}": value / divisor for i, value in enumerate(clicks)}}, resampler)
        found = (part.low * divisor, part.high * divisor)
        assert found == pytest.approx((whole.low, whole.high), rel=1e-9)

    def test_a_number_does_not_depend_on_what_else_was_asked(self) -> None:
        sample = {"liver": {f"s{i}": math.sqrt(i) for i in range(9)}}
        alone, later = Resampler(np.random.default_rng(5)), Resampler(np.random.default_rng(5))
        interval({"polyps": {f"s{i}": float(i) for i in range(30)}}, later)
        assert interval(sample, alone) == interval(sample, later)

    def test_ninety_five_in_a_hundred_intervals_hold_the_truth(self) -> None:
        # 400 experiments with 30 skewed subjects; BCa's true coverage there is about 0.92 to 0.94, and chance
        # (three standard errors of 0.012) adds little: a wrong tail or an interval by row would fall out.
        rng, held = np.random.default_rng(7), 0
        for _ in range(400):
            values = rng.beta(4, 1, size=30)
            found = interval({"d": dict(enumerate_names(values))}, Resampler(rng, resamples=499))
            held += found.low <= 0.8 <= found.high
        assert 0.89 <= held / 400 <= 0.98

    def test_many_rows_of_few_subjects_do_not_pass_for_many_subjects(self, resampler: Resampler) -> None:
        rng = np.random.default_rng(2)
        rows = [
            row(subject=f"s{s}", case=f"c{case}", dice=level + rng.normal(0, 0.01))
            for s, level in enumerate(rng.normal(0.7, 0.1, size=10))
            for case in range(50)
        ]
        found = estimate(rows, "dice", resampler)
        by_row = 2 * 1.96 * np.std([item.dice for item in rows]) / math.sqrt(len(rows))
        assert found.high - found.low > 4 * by_row


def enumerate_names(values: np.ndarray) -> list[tuple[str, float]]:
    return [(f"s{i}", float(value)) for i, value in enumerate(values)]


class TestPairs:
    def test_the_difference_is_b_minus_a(self, resampler: Resampler) -> None:
        a, b = people(0.5, 0.6, 0.7), people(0.6, 0.7, 0.6)
        found = paired(a, b, "dice", resampler)
        assert found.difference.estimate == pytest.approx(0.1 / 3)
        assert (found.a, found.b) == (pytest.approx(0.6), pytest.approx(1.9 / 3))
        assert (found.better, found.worse, found.equal, found.rows) == (2, 1, 0, 3)

    def test_all_signs_are_tried_for_few_subjects(self, resampler: Resampler) -> None:
        # Differences 1, 2, 3, 4 (in hundredths): of 16 sign patterns only +10 and -10 are as extreme.
        found = paired(people(0, 0, 0, 0), people(0.01, 0.02, 0.03, 0.04), "dice", resampler)
        assert (found.p, found.exact) == (2 / 16, True)
        assert found.smallest_p == 0.125
        assert not found.can_be_significant

    @pytest.mark.parametrize(("subjects", "possible"), [(5, False), (6, True)])
    def test_six_subjects_must_differ(self, resampler: Resampler, subjects: int, possible: bool) -> None:
        a = people(*[0.5] * subjects, 0.5)  # the last one is a tie, which tells the test nothing
        b = people(*[0.6] * subjects, 0.5)
        found = paired(a, b, "dice", resampler)
        assert found.can_be_significant is possible
        assert found.p == 2.0 ** (1 - subjects)
        assert found.equal == 1

    def test_the_test_is_that_of_scipy(self, resampler: Resampler, rng: np.random.Generator) -> None:
        differences = rng.normal(0.05, 0.1, size=11)
        found = paired(people(*[0.5] * 11), people(*(0.5 + differences)), "dice", resampler)
        theirs = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert found.p == pytest.approx(theirs.pvalue)

    def test_many_subjects_are_drawn_and_p_is_never_zero(self, resampler: Resampler) -> None:
        found = paired(people(*[0.5] * 40), people(*[0.9] * 40), "dice", resampler)
        assert (found.p, found.exact) == (1 / 10_000, False)

    def test_a_run_against_itself(self, resampler: Resampler) -> None:
        rows = people(0.5, 0.6, 0.7)
        found = paired(rows, rows, "dice", resampler)
        assert (found.difference.estimate, found.p, found.equal) == (0, 1, 3)

    def test_lower_distances_are_better_and_two_misses_are_equal(self, resampler: Resampler) -> None:
        a = people(5, 6, INF, INF, measure="hd95")
        b = people(4, 7, INF, 3, measure="hd95")
        found = paired(a, b, "hd95", resampler)
        # Differences -1, +1, 0, -inf.
        assert (found.better, found.worse, found.equal) == (2, 1, 1)
        assert found.difference.estimate == -0.5

    def test_distances_are_tested_as_wilcoxon_does(self, resampler: Resampler, rng: np.random.Generator) -> None:
        differences = rng.normal(1, 2, size=10)
        found = paired(
            people(*[9.0] * 10, measure="hd95"), people(*(9 + differences), measure="hd95"), "hd95", resampler
        )
        assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)

    def test_undefined_rows_leave_as_pairs(self, resampler: Resampler) -> None:
        found = paired(people(0.5, NAN, 0.7), people(0.6, 0.9, NAN), "dice", resampler)
        assert (found.rows, found.difference.estimate) == (1, pytest.approx(0.1))

    def test_no_false_alarms_beyond_one_in_twenty(self) -> None:
        # 300 experiments without any effect and 8 subjects; p <= 0.05 should come in at most 5 % of them.
        rng = np.random.default_rng(11)
        resampler = Resampler(rng, resamples=99)
        alarms = sum(
            paired(people(*[0.0] * 8), people(*rng.standard_t(3, size=8)), "dice", resampler).p <= 0.05
            for _ in range(300)
        )
        assert alarms / 300 <= 0.09

    def test_a_patient_in_two_datasets_has_one_sign(self, resampler: Resampler) -> None:
        a = people(*[0.5] * 5, dataset="ct") + people(*[0.5] * 5, dataset="pet")
        b = people(*[0.6] * 5, dataset="ct") + people(*[0.6] * 5, dataset="pet")
        found = paired(a, b, "dice", resampler)
        assert found.smallest_p == found.p == 2 / 2**5
        assert found.better == 5

    def test_conditions_of_one_run_are_compared_object_by_object(self, resampler: Resampler) -> None:
        standard = people(0.8, 0.9, 0.5)
        shifted = [
            replace(item, protocol="shift", severity=0.1, seed=seed, dice=item.dice - 0.1 * (seed + 1))
            for item in standard[:2]
            for seed in range(2)
        ]
        found = against(shifted, standard, "dice", resampler)
        assert found.difference.estimate == pytest.approx(-0.15)
        assert found.a == pytest.approx(0.85)  # the third person, without a shifted box, is left out
        assert found.objects == 2

    def test_slices_are_compared_with_the_same_slices(self, resampler: Resampler) -> None:
        # Slice 6, where only the wide box found something, has no partner; the volume's score is another thing.
        tight = [row(object=f"1@{z}", dice=0.8) for z in (3, 4, 5)]
        wide = [row(object=f"1@{z}", dice=0.7, protocol="expansion") for z in (3, 4, 5, 6)]
        found = against(wide, tight, "dice", resampler)
        assert (found.difference.estimate, found.rows, found.objects) == (pytest.approx(-0.1), 3, 1)
        assert against(wide, [row(dice=0.8)], "dice", resampler).rows == 0


class TestMatching:
    def test_rows_come_in_the_same_order(self) -> None:
        a, b = people(0.1, 0.2, 0.3), people(0.4, 0.5, 0.6)[::-1]
        one, other = matched(a, b)
        assert [item.key for item in one] == [item.key for item in other]

    def test_runs_over_different_things_are_refused_with_counts(self) -> None:
        with pytest.raises(DatasetError, match="2 rows are in both, 1 only in the first and 0 only in the second"):
            matched(people(0.1, 0.2, 0.3), people(0.1, 0.2))
        assert len(matched(people(0.1, 0.2, 0.3), people(0.1, 0.2), common_only=True)[0]) == 2

    def test_runs_with_nothing_in_common_are_refused(self) -> None:
        with pytest.raises(DatasetError, match="no row in common"):
            matched(people(0.1), people(0.1, dataset="polyps"), common_only=True)

    def test_a_run_with_a_row_twice_is_refused(self) -> None:
        with pytest.raises(DatasetError, match="the second run has two rows"):
            matched(people(0.1), people(0.1) + people(0.2))

    def test_a_severity_that_went_through_a_file_is_the_same(self) -> None:
        assert len(matched([row(severity=0.1 + 0.2)], [row(severity=0.3)])[0]) == 1


class TestHolm:
    def test_the_smallest_counts_for_all(self) -> None:
        # 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 and never less than the one before.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_a_comparison_that_could_not_be_made_does_not_count(self) -> None:
        assert holm([0.01, NAN])[0] == 0.01
        assert holm([]) == []

    def test_no_p_above_one(self) -> None:
        assert holm([0.9, 0.8]) == [1, 1]


class TestSizesAndErrors:
    @pytest.mark.parametrize(
        ("area", "name"),
        [
            (0.005, "tiny"),
            (0.0051, "small"),
            (0.02, "small"),
            (0.1, "medium"),
            (0.11, "large"),
            (1.0, "large"),
            (NAN, ""),
        ],
    )
    def test_sizes(self, area: float, name: str) -> None:
        assert size_class(area) == name

    @pytest.mark.parametrize(
        ("dice", "leak", "error"),
        [(0.9, 0.0, False), (0.5, 0.2, False), (0.49, 0.0, True), (0.9, 0.21, True), (0.0, NAN, True)],
    )
    def test_errors(self, dice: float, leak: float, error: bool) -> None:
        assert is_error(row(dice=dice, leak=leak)) is error

    def test_finding_something_where_nothing_is_is_an_error_and_no_miss(self) -> None:
        beside = row(dice=0.0, hd95=INF, assd=INF, leak=1.0, area=NAN)
        assert (is_miss(beside), is_error(beside), size_class(beside.area)) == (False, True, "")

    def test_nothing_predicted_is_a_miss_and_nothing_to_find_is_none(self) -> None:
        assert is_miss(row(dice=0.0, hd95=INF, leak=NAN))
        nothing = row(dice=NAN, hd95=NAN, leak=NAN, area=NAN)
        assert (is_miss(nothing), is_error(nothing)) == (False, False)


class TestCalibration:
    def test_worked_by_hand(self, resampler: Resampler) -> None:
        rows = [
            row(subject="s1", predicted_iou=0.95, iou=0.85),
            row(subject="s2", predicted_iou=0.91, iou=0.91),
            row(subject="s3", predicted_iou=0.55, iou=0.75),
            row(subject="s4", predicted_iou=NAN, iou=0.75),
        ]
        found = calibration(rows, resampler)
        assert [(item.low, item.high, item.prompts) for item in found.bins] == [(0.5, 0.6, 1), (0.9, 1.0, 2)]
        # Bins: |0.55 - 0.75| with a third, |0.93 - 0.88| with two thirds.
        assert found.error == pytest.approx(0.2 / 3 + 0.05 * 2 / 3)
        assert found.difference.estimate == pytest.approx((0.1 + 0 - 0.2) / 3)
        assert found.spearman == pytest.approx(0.5)
        assert found.prompts == 3

    def test_estimates_above_one_fall_into_the_last_bin(self, resampler: Resampler) -> None:
        rows = [row(subject=f"s{i}", predicted_iou=value) for i, value in enumerate((1.0, 1.04, -0.1))]
        assert [item.prompts for item in calibration(rows, resampler).bins] == [1, 2]

    def test_a_model_without_estimates(self, resampler: Resampler) -> None:
        found = calibration([row(predicted_iou=NAN)], resampler)
        assert found.bins == ()
        assert risk_coverage([row(predicted_iou=NAN)]) == ()

    def test_subjects_with_many_rows_weigh_as_others(self) -> None:
        rows = [*(row(subject="s1", case=f"c{i}") for i in range(3)), row(subject="s2")]
        assert weights(rows) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])

    def test_what_is_kept_above_a_threshold(self) -> None:
        rows = [
            row(subject=f"s{i}", predicted_iou=predicted, dice=dice)
            for i, (predicted, dice) in enumerate(((0.9, 0.8), (0.7, 0.6), (0.5, 0.1), (0.9, 1.0)))
        ]
        half, most, none = risk_coverage(rows, (0.6, 0.9, 0.95))
        assert (half.share, half.dice) == (pytest.approx(0.75), pytest.approx(0.8))
        assert (most.share, most.dice) == (pytest.approx(0.5), pytest.approx(0.9))
        assert none.share == 0
        assert math.isnan(none.dice)
        assert [item.threshold for item in risk_coverage(rows)] == [0.5, 0.7, 0.9]


class TestClicks:
    def test_the_first_click_that_is_good_enough_counts(self, resampler: Resampler) -> None:
        quick = [row(protocol="clicks", severity=float(n), dice=dice) for n, dice in ((1, 0.5), (2, 0.86), (3, 0.8))]
        never = [row(protocol="clicks", subject="s2", severity=float(n), dice=0.1 * n) for n in (1, 2, 3)]
        at_85, at_90 = clicks_needed(quick + never, resampler)
        assert (at_85.goal, at_85.clicks.estimate, at_85.failures.estimate) == (0.85, 2.5, 0.5)
        assert (at_90.clicks.estimate, at_90.failures.estimate, at_90.most) == (3, 1, 3)

    def test_a_box_that_is_good_enough_takes_no_click(self, resampler: Resampler) -> None:
        rows = [row(protocol="box+clicks", severity=float(n), dice=0.95) for n in range(3)]
        assert clicks_needed(rows, resampler)[0].clicks.estimate == 0

    def test_objects_are_counted_without_their_slices(self, resampler: Resampler) -> None:
        rows = [row(protocol="clicks", object=name, severity=1.0) for name in ("1@17", "1@18", "2@3")]
        assert clicks_needed(rows, resampler)[0].objects == 2

    def test_without_clicks_there_is_nothing(self, resampler: Resampler) -> None:
        assert clicks_needed([row()], resampler) == ()
