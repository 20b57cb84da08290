"""Runs of `features` for tests."""

from pathlib import Path

from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import FeaturesReport, compute_features


def features(data: Path, encoder: Path, **options: object) -> FeaturesReport:
    return compute_features(FeaturesConfig(str(data), speech_encoder=str(encoder), device="cpu", **options))  # type: ignore[arg-type]


def counts(report: FeaturesReport) -> tuple[int, int, int]:
    return report.encoded, report.kept, len(report.failed)


def contents(folder: Path) -> dict[str, bytes]:
    """The cache's files, leftovers of a killed run included."""
    return {path.name: path.read_bytes() for path in folder.glob("features-*")}
