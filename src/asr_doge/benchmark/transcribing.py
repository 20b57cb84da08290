"""Transcripts of all samples by one recogniser: kept as they come, and scored.

Promises: every sample gets a result, in order; a recording that cannot be read costs the others nothing and counts as
an empty transcript; what is finished is on disk, and is not transcribed again.
It does not know which recogniser it is.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from tqdm import tqdm

from asr_doge.benchmark.accuracy import SampleResult, score_sample
from asr_doge.benchmark.progress import Finished, Progress
from asr_doge.benchmark.results import Throughput
from asr_doge.data.manifest import Utterance
from asr_doge.inference.results import FailedTranscription, Transcription

Outcome = Transcription | FailedTranscription
Item = TypeVar("Item")


def transcribe_and_score(
    samples: Sequence[Utterance],
    transcribe_each: Callable[[Iterable[Utterance]], Iterator[Outcome]],
    progress: Progress,
    title: str,
) -> tuple[list[SampleResult], Throughput]:
    """Transcribe what is not finished yet, and score everything.

    Args:
        samples: utterances.
        transcribe_each: gives their outcomes, in order.
        progress: what is finished already; new transcripts are added to it.
        title: of the progress bar.
    """
    known = {sample.id: found for sample in samples if (found := progress.finished(sample)) is not None}
    if known:
        tqdm.write(f"{title}: {len(known)} of {len(samples)} are finished already", file=sys.stderr)
    outcomes = transcribe_each(sample for sample in samples if sample.id not in known)
    results, audio_seconds, seconds = [], 0.0, 0.0
    for sample in with_bar(samples, title):
        outcome = known.get(sample.id) or _next(outcomes, sample, progress)
        if isinstance(outcome, FailedTranscription):
            results.append(score_sample(sample, "", str(outcome.error)))
            continue
        # The recording's own length, whatever the manifest says.
        heard = score_sample(replace(sample, duration=outcome.duration), outcome.text)
        results.append(replace(heard, incomplete=outcome.incomplete))
        audio_seconds += outcome.duration
        seconds += outcome.seconds
    return results, Throughput(audio_seconds, seconds)


def with_bar(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar on stderr."""
    bar: Iterable[Item] = tqdm(items, desc=title, unit="utt", dynamic_ncols=True, disable=None)
    return bar


def _next(outcomes: Iterator[Outcome], sample: Utterance, progress: Progress) -> Finished | FailedTranscription:
    """The outcome of a sample, kept if it is a transcript; what cannot be read now is tried again the next time."""
    start = time.perf_counter()
    outcome = next(outcomes)
    if isinstance(outcome, FailedTranscription):
        return outcome
    return progress.add(sample, outcome, time.perf_counter() - start)
