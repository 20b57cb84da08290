"""What the guard against regressions calls one."""

import json

from regression import EXPECTED, grown


def test_what_has_grown_grossly_is_named_with_the_remedy() -> None:
    expected = {"passes": 2.0, "bytes": 1000.0, "share": 0.01}
    assert grown({"passes": 2.9, "bytes": 900.0, "share": 0.01}, expected) == []
    (doubled,) = grown({"passes": 4.0, "bytes": 1000.0}, expected)
    assert doubled.startswith("passes is 4, more than 1.5 times the 2 of bench/regression.json: ")
    assert doubled.endswith("python bench/regression.py --update")
    (unknown,) = grown({"leaks": 1.0}, expected)
    assert unknown.startswith("leaks is not in bench/regression.json: ")


def test_a_count_that_is_no_number_is_no_pass() -> None:
    assert len(grown({"share": float("nan")}, {"share": 0.01})) == 1


def test_drafts_are_expected_to_save_passes() -> None:
    expected = json.loads(EXPECTED.read_text())
    assert 3 * expected["language_model_passes_draft"] < expected["language_model_passes_greedy"]
