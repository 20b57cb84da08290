"""The `process` command: turn a corpus into manifests.

Promises: every listed recording is either kept, with its measured duration and normalized transcript, or counted under
the reason why it was dropped; one bad recording does not stop the rest. All splits are read before a manifest is
written, and the same corpus gives the same bytes. Of audio it copies only what is no file of its own (lhotse's cuts of
parts, and Shar), and it decodes recordings only to verify them; it does not know models.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from asr_doge.audio.reading import audio_duration, read_audio
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.data.atomic_writing import check_writable, write_atomically
from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.corpora import (
    ID_USED_TWICE,
    MISSING_AUDIO,
    Corpus,
    Listed,
    Rejected,
    find_corpus,
    manifest_of_split,
)
from asr_doge.data.corpora.lhotse_cuts import lhotse_library, write_cuts
from asr_doge.data.corpus_report import ProcessReport, SplitReport, report_page
from asr_doge.data.leakage import find_leaks
from asr_doge.data.manifest import Utterance, write_manifest
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.progress import progress_bar
from asr_doge.text.normalization import normalize_training_text

AT_ONCE = 4096
"""Recordings that are handed to threads at a time: each takes a kilobyte until it is validated."""

Engine = Callable[[Sequence[Listed], ProcessConfig, str], Iterable[Utterance | Rejected]]
"""Validates recordings, in their order: each is kept as an utterance or rejected. The last argument is a title."""


def process_corpus(config: ProcessConfig, engine: Engine | None = None) -> ProcessReport:
    """Write a corpus's manifests, the list of what was dropped, and the report page.

    The recordings are measured and validated by the engine, by default by threads of this process.

    Raises:
        ConfigError: no corpus of that name, every split is left out, or lhotse is wanted and not installed.
        DataError: a folder or split is missing, a transcript list is unreadable, no utterance of a split can be kept,
            or the output cannot be written.
    """
    corpus = find_corpus(config.dataset, config.output_dir / "audio")
    splits = _chosen_splits(config, corpus)
    check_writable(config.output_dir)
    if config.lhotse_cuts:
        lhotse_library()  # before hours of work
    for role, split in splits.items():
        _refuse_to_overwrite_source(config, role, split)
    listed = {role: corpus.read(config.data_dir, split) for role, split in splits.items()}
    validate = engine or _validate_here
    validated = {
        role: _by_id(validate(listed.pop(role), config, f"{role} ({split})")) for role, split in splits.items()
    }
    reports = [
        _report(config, role, splits[role], kept, rejected, validated.get("train", ([], []))[0])
        for role, (kept, rejected) in validated.items()
    ]
    kept_by_role = {role: kept for role, (kept, _) in validated.items()}
    warnings = [*_losses(config, reports), *find_leaks(kept_by_role)]
    if config.lhotse_cuts:
        for role, kept in kept_by_role.items():
            warnings += write_cuts(config.output_dir / f"cuts_{role}.jsonl.gz", kept, config.num_workers)
    report = ProcessReport(
        dataset=config.dataset,
        splits=tuple(reports),
        warnings=tuple(warnings),
        page=config.output_dir / "report.html",
    )
    for split_report in reports:
        write_manifest(split_report.manifest, validated[split_report.role][0])
    write_atomically(
        config.output_dir / "dropped.tsv", _table({role: rejected for role, (_, rejected) in validated.items()})
    )
    write_atomically(report.page, report_page(report).encode("utf-8", "backslashreplace"))
    return report


def _chosen_splits(config: ProcessConfig, corpus: Corpus) -> dict[str, str]:
    wanted = {"train": config.train_split, "dev": config.dev_split, "test": config.test_split}
    defaults = zip(wanted.items(), corpus.default_splits, strict=True)
    splits = {role: default if split is None else split for (role, split), default in defaults}
    splits = {role: split for role, split in splits.items() if split}
    if not splits:
        raise ConfigError("--train_split, --dev_split and --test_split are all empty: name at least one split")
    return splits


def _manifest_path(config: ProcessConfig, role: str) -> Path:
    return config.output_dir / f"{role}_manifest.json"


def _refuse_to_overwrite_source(config: ProcessConfig, role: str, split: str) -> None:
    """Refuse to replace a manifest, or cuts, by those made from it: the dropped utterances would be lost for good."""
    if config.dataset == "lhotse" and config.lhotse_cuts and config.data_dir.resolve() == config.output_dir.resolve():
        raise DataError(f"--output_dir {config.output_dir} would overwrite its own source: choose another")
    if config.dataset != "manifest":
        return
    source = manifest_of_split(config.data_dir, split)
    target = _manifest_path(config, role)
    if source is not None and target.exists() and source.samefile(target):
        raise DataError(f"--output_dir {config.output_dir} would overwrite its own source {source}: choose another")


def _by_id(results: Iterable[Utterance | Rejected]) -> tuple[list[Utterance], list[Rejected]]:
    """The kept and the rejected recordings of one split, in their order."""
    kept: dict[str, Utterance] = {}
    rejected: list[Rejected] = []
    for result in results:
        if isinstance(result, Rejected):
            rejected.append(result)
        elif result.id in kept:
            same = f"{kept[result.id].audio_path} has the same id {result.id!r}"
            rejected.append(Rejected(result.id, ID_USED_TWICE, f"{result.audio_path}: {same}"))
        else:
            kept[result.id] = result
    return list(kept.values()), rejected


def _validate_here(listed: Sequence[Listed], config: ProcessConfig, title: str) -> Iterator[Utterance | Rejected]:
    with progress_bar(total=len(listed), desc=title, unit="file") as bar:
        for start in range(0, len(listed), AT_ONCE):
            for result in validate_each(listed[start : start + AT_ONCE], config):
                bar.update()
                yield result


def validate_each(listed: Sequence[Listed], config: ProcessConfig) -> Iterator[Utterance | Rejected]:
    """Measure and validate recordings, in their order, several at the same time."""
    with ThreadPoolExecutor(config.num_workers) as threads:
        yield from threads.map(partial(_validate, config=config), listed)


def _validate(source: Listed, config: ProcessConfig) -> Utterance | Rejected:
    if isinstance(source, Rejected):
        return source
    path = Path(os.path.abspath(source.audio_path))  # noqa: PTH100 - `resolve` would replace the user's links
    if not os.path.isfile(path):  # noqa: PTH113 - False too where Path.is_file raises
        return Rejected(source.id, MISSING_AUDIO, f"{source.audio_path} does not exist")
    try:
        duration = len(read_audio(path)) / SAMPLE_RATE if config.verify else audio_duration(path)
    except AudioError as error:
        return Rejected(source.id, "unreadable audio", str(error))
    text = normalize_training_text(source.raw_text)
    if not text:
        finding = f"nothing is left of the transcript {source.raw_text[:40]!r}"
        return Rejected(source.id, "empty text", f"{source.audio_path}: {finding}")
    if limit := _exceeded_limit(duration, text, config):
        return Rejected(source.id, limit)
    return Utterance(
        id=source.id,
        audio_path=path,
        text=text,
        raw_text=source.raw_text,
        duration=round(duration, 6),
        speaker=source.speaker,
        language=source.language or config.language,
    )


def _limits(config: ProcessConfig) -> dict[str, str]:
    """The limits for which a recording is dropped although it has no fault, and the flag of each."""
    return {
        f"shorter than {config.min_duration:g} s": "--min_duration",
        f"longer than {config.max_duration:g} s": "--max_duration",
        f"fewer than {config.min_chars} characters": "--min_chars",
        f"more than {config.max_chars} characters": "--max_chars",
        f"more than {config.max_chars_per_second} characters a second": "--max_chars_per_second",
    }


def _exceeded_limit(duration: float, text: str, config: ProcessConfig) -> str | None:
    """The first limit that a recording of `duration` seconds exceeds."""
    exceeded = (
        duration < config.min_duration,
        duration > config.max_duration,
        len(text) < config.min_chars,
        config.max_chars is not None and len(text) > config.max_chars,
        config.max_chars_per_second is not None and len(text) > config.max_chars_per_second * duration,
    )
    return next((reason for reason, beyond in zip(_limits(config), exceeded, strict=True) if beyond), None)


def _report(
    config: ProcessConfig,
    role: str,
    split: str,
    kept: Sequence[Utterance],
    rejected: Sequence[Rejected],
    train: Sequence[Utterance],
) -> SplitReport:
    report = SplitReport.of(role, split, _manifest_path(config, role), kept, rejected, train)
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        flags = sorted(flag for reason, flag in _limits(config).items() if reason in report.dropped)
        first = f"the first is {report.examples[0]}" if report.examples else f"change {' or '.join(flags)}"
        raise DataError(f"no utterance of split '{split}' in {config.data_dir} can be kept: {counts}; {first}")
    return report


def _losses(config: ProcessConfig, reports: Sequence[SplitReport]) -> Iterator[str]:
    """Warn about limits that drop most of a split, which is seldom intended."""
    for report in reports:
        for reason, flag in _limits(config).items():
            share = report.dropped.get(reason, 0) / (report.kept + sum(report.dropped.values()))
            if share > 0.5:
                yield f"{share:.0%} of {report.role} is {reason}: change {flag} to keep it"


def _table(rejected: dict[str, list[Rejected]]) -> bytes:
    """All dropped utterances, as TSV."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["manifest", "id", "reason", "detail"])
    for role, faults in rejected.items():
        writer.writerows([role, fault.id, fault.reason, fault.detail or ""] for fault in faults)
    return text.getvalue().encode("utf-8", "backslashreplace")
