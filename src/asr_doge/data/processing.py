"""The `process` verb: a corpus in, manifests out.

Promises: every listed recording is either kept, with its measured length and its normalized transcript, or counted
under the reason it was dropped for; one bad recording does not stop the rest. All splits are read before anything is
written, and the same corpus gives the same bytes. It copies, converts and decodes no audio; it does not know models.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from asr_doge.audio.reading import audio_duration
from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.data.corpora import Corpus, SourceUtterance, find_corpus, manifest_of_split
from asr_doge.data.manifest import Utterance, write_manifest
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.text.normalization import normalize_training_text

_EXAMPLES_SHOWN = 5
_TOO_SHORT, _TOO_LONG = "shorter than", "longer than"
_HEADER_THREADS = 8  # reading headers waits for the disk more than for the processor


@dataclass(frozen=True)
class ProcessConfig:
    """Make the manifests of a corpus: measure its recordings, normalize its transcripts, and keep what is usable."""

    data_dir: Path
    """Folder of the corpus, as its authors lay it out."""
    output_dir: Path
    """Folder for train_manifest.json, dev_manifest.json and test_manifest.json."""
    dataset: str = "librispeech"
    """Layout of the corpus: librispeech, fsdd (Free Spoken Digit Dataset), folder (recordings with a .txt beside each)
    or manifest (SPLIT.jsonl, SPLIT.json or SPLIT_manifest.json, ours or NeMo's)."""
    train_split: str | None = None
    """Split to train on. Default: the corpus's own; train-clean-100 for librispeech, train-without-dev for fsdd, else
    train. Empty ("") leaves it out. fsdd also takes all, a speaker's name, and forms like train-without-lucas and
    test-of-lucas; folder takes a subfolder's name or all."""
    dev_split: str | None = None
    """Split to tune on. Default: dev-clean for librispeech, else dev. Empty ("") leaves it out."""
    test_split: str | None = None
    """Split to test on. Default: test-clean for librispeech, else test. Empty ("") leaves it out."""
    sample_rate: int = SAMPLE_RATE
    """Rate, in Hz, that recordings are resampled to when they are read; the files stay as they are. The speech encoder
    hears 16000 and nothing else."""
    max_duration: float = 30.0
    """Longest recording to keep, in seconds."""
    min_duration: float = 0.5
    """Shortest recording to keep, in seconds. Single words are shorter: for fsdd give 0.1."""

    def __post_init__(self) -> None:
        if self.sample_rate != SAMPLE_RATE:
            raise ConfigError(
                f"--sample_rate {self.sample_rate} cannot be used: the encoder hears {SAMPLE_RATE} Hz, and recordings"
                " of any rate are resampled to it when read; leave the flag out"
            )
        if not 0 <= self.min_duration < self.max_duration:
            raise ConfigError(
                f"--min_duration {self.min_duration} and --max_duration {self.max_duration} leave nothing to keep:"
                " choose seconds with 0 <= min_duration < max_duration"
            )


@dataclass(frozen=True)
class SplitReport:
    """What became of one split."""

    role: str
    """`train`, `dev` or `test`."""
    split: str
    """The corpus's own name for it."""
    manifest: Path
    kept: int
    seconds: float
    """Length of what was kept."""
    speakers: int
    """Different speakers of what was kept; 0 if the corpus does not name them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of recordings by the reason they were dropped for."""
    examples: tuple[str, ...] = ()
    """The first few faulty recordings, a line each; a mere length outside the limits is no fault."""

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        speakers = f", {_counted(self.speakers, 'speaker')}" if self.speakers else ""
        lines = [
            f"{self.role} ({self.split}): {_counted(self.kept, 'utterance')}, {self.seconds / 3600:.2f} h{speakers}"
            f" -> {self.manifest}"
        ]
        lines += [f"  dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        return lines + [f"    {example}" for example in self.examples]


@dataclass(frozen=True)
class ProcessReport:
    """What `process_corpus` did."""

    splits: tuple[SplitReport, ...]
    warnings: tuple[str, ...] = ()
    """What may make results look better, or the corpus smaller, than they are."""

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        return [line for split in self.splits for line in split.lines()] + [f"warning: {w}" for w in self.warnings]


def process_corpus(config: ProcessConfig) -> ProcessReport:
    """Write a corpus's manifests.

    Raises:
        ConfigError: no corpus of that name, or every split is left out.
        DataError: a folder or split is missing, a transcript list or manifest is malformed, nothing of a split can be
            kept, or a manifest cannot be written.
    """
    corpus = find_corpus(config.dataset)
    splits = _chosen_splits(config, corpus)
    for role, split in splits.items():
        _refuse_to_overwrite_source(config, role, split)
    sources = {role: corpus.read(config.data_dir, split) for role, split in splits.items()}
    kept, reports = {}, []
    for role, split in splits.items():
        kept[role], faults = _keep_usable(sources[role], config, f"{role} ({split})")
        reports.append(_report(config, role, split, kept[role], faults))
    for report in reports:
        write_manifest(report.manifest, kept[report.role])
    return ProcessReport(tuple(reports), (*_losses(reports), *_leaks(kept)))


@dataclass(frozen=True)
class _Fault:
    """Why a recording is dropped."""

    reason: str
    detail: str | None = None
    """A line that names the recording, where somebody should look at it."""


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
    """A manifest must not replace one it was made from: what it drops would be lost for good."""
    if config.dataset != "manifest":
        return
    source = manifest_of_split(config.data_dir, split)
    target = _manifest_path(config, role)
    if source is not None and target.exists() and source.samefile(target):
        raise DataError(f"--output_dir {config.output_dir} would overwrite its own source {source}: choose another")


def _keep_usable(
    sources: Sequence[SourceUtterance], config: ProcessConfig, title: str
) -> tuple[list[Utterance], list[_Fault]]:
    """Measure and judge the recordings of one split, in their order."""
    results: list[Utterance | _Fault] = []
    ids: set[str] = set()
    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        judged = threads.map(partial(_judge, config=config), sources)
        # disable=None: no bar where standard error is no terminal
        for result in tqdm(judged, total=len(sources), desc=title, unit="file", disable=None):
            if isinstance(result, Utterance) and result.id in ids:
                result = _Fault("id used twice", f"{result.audio_path}: another recording has the id {result.id!r}")
            if isinstance(result, Utterance):
                ids.add(result.id)
            results.append(result)
    utterances = [result for result in results if isinstance(result, Utterance)]
    return utterances, [result for result in results if isinstance(result, _Fault)]


def _judge(source: SourceUtterance, config: ProcessConfig) -> Utterance | _Fault:
    if source.problem:
        return _Fault("no transcript", f"{source.audio_path}: {source.problem}")
    if not source.audio_path.is_file():
        return _Fault("missing audio", f"{source.audio_path} does not exist")
    try:
        duration = audio_duration(source.audio_path)
    except AudioError as error:
        return _Fault("unreadable audio", str(error))
    text = normalize_training_text(source.raw_text)
    if not text:
        return _Fault("empty text", f"{source.audio_path}: nothing is left of the transcript {source.raw_text[:40]!r}")
    if duration < config.min_duration:
        return _Fault(f"{_TOO_SHORT} {config.min_duration:g} s")
    if duration > config.max_duration:
        return _Fault(f"{_TOO_LONG} {config.max_duration:g} s")
    return Utterance(
        id=source.id,
        audio_path=Path(os.path.abspath(source.audio_path)),  # noqa: PTH100 - `resolve` would replace the user's links
        text=text,
        raw_text=source.raw_text,
        duration=round(duration, 6),
        speaker=source.speaker,
        language=source.language,
    )


def _report(
    config: ProcessConfig, role: str, split: str, kept: Sequence[Utterance], faults: Sequence[_Fault]
) -> SplitReport:
    dropped = dict(sorted(Counter(fault.reason for fault in faults).items()))
    details = [fault.detail for fault in faults if fault.detail]
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        first = f"; the first is {details[0]}" if details else "; change --min_duration or --max_duration"
        raise DataError(f"no utterance of split '{split}' in {config.data_dir} can be kept: {counts}{first}")
    more = [f"and {len(details) - _EXAMPLES_SHOWN:,} more"] if len(details) > _EXAMPLES_SHOWN else []
    return SplitReport(
        role=role,
        split=split,
        manifest=_manifest_path(config, role),
        kept=len(kept),
        seconds=sum(utterance.duration for utterance in kept),
        speakers=len({utterance.speaker for utterance in kept} - {None}),
        dropped=dropped,
        examples=(*details[:_EXAMPLES_SHOWN], *more),
    )


def _losses(reports: Iterable[SplitReport]) -> Iterable[str]:
    """Limits that take most of a split, which is seldom meant."""
    for report in reports:
        for reason, count in report.dropped.items():
            total = report.kept + sum(report.dropped.values())
            if count > total / 2 and reason.startswith((_TOO_SHORT, _TOO_LONG)):
                flag = "--min_duration" if reason.startswith(_TOO_SHORT) else "--max_duration"
                yield f"{count / total:.0%} of {report.role} is {reason}: change {flag} to keep it"


def _leaks(kept: dict[str, list[Utterance]]) -> Iterable[str]:
    """Recordings and speakers that are trained on and judged by."""
    train = kept.get("train", [])
    recordings = {utterance.audio_path for utterance in train}
    speakers = {utterance.speaker for utterance in train} - {None}
    for role in ("dev", "test"):
        others = kept.get(role, [])
        shared = len(recordings.intersection(utterance.audio_path for utterance in others))
        if shared:
            yield f"{_counted(shared, 'recording')} in both train and {role}: results on {role} will look too good"
            continue
        heard = sorted(speakers.intersection(utterance.speaker for utterance in others), key=str)
        if heard:
            names = ", ".join(map(str, heard[:6])) + (" …" if len(heard) > 6 else "")
            yield f"{_counted(len(heard), 'speaker')} in both train and {role} ({names}): {role} shows no new speakers"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
