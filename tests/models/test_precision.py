"""The fastest precision is chosen by what was measured, and only if nobody named one."""

import pytest

from asr_doge.choices import LoadDtype, Quantization
from asr_doge.models.precision import PrecisionName, choose_precision, fastest


@pytest.mark.parametrize(
    ("rates", "name"),
    [
        ({"fp32": 158.0, "bf16": 415.0, "int8": 745.0}, "int8"),  # AVX-512 with VNNI and BF16
        ({"fp32": 90.0, "bf16": 20.0, "int8": 60.0}, "fp32"),
        ({"fp32": 90.0, "bf16": 180.0, "int8": 190.0}, "bf16"),  # not worth the rounding
        ({"fp32": 90.0, "bf16": 98.0, "int8": 107.0}, "int8"),
        ({"fp32": 90.0, "bf16": 98.0, "int8": 98.0}, "fp32"),
    ],
)
def test_a_lower_precision_must_be_clearly_faster(rates: dict[PrecisionName, float], name: PrecisionName) -> None:
    assert fastest(rates) == name


@pytest.mark.parametrize(("dtype", "quantization"), [("fp32", "none"), ("bf16", "int8"), ("bf16", "none")])
def test_what_is_named_is_taken_unmeasured(dtype: LoadDtype, quantization: Quantization) -> None:
    chosen = choose_precision(dtype, quantization, "cpu")
    assert (chosen.dtype, chosen.quantization, chosen.rates) == (dtype, quantization, {})
    assert str(chosen) == f"precision: {'int8' if quantization == 'int8' else dtype}"


def test_the_measured_fastest_is_chosen_and_named() -> None:
    chosen = choose_precision("auto", "none", "cpu")
    assert chosen.rates.keys() == {"fp32", "bf16", "int8"}
    assert all(rate > 0 for rate in chosen.rates.values())
    name = fastest(chosen.rates)
    assert ("int8" if chosen.quantization == "int8" else chosen.dtype) == name
    assert str(chosen).startswith(f"precision: {name} (billion operations a second: fp32 ")


def test_a_quantization_that_is_named_stays() -> None:
    assert choose_precision("auto", "int8", "cpu").quantization == "int8"
