"""Transcribe all samples by one recognizer, store the transcripts, and score them.

Promises: every sample gets a result, in order; a recording that cannot be read does not affect the others and counts as
an empty transcript; finished transcripts are on disk and are not computed again.
It does not know the recognizer.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tqdm import tqdm

from asr_doge.benchmark.accuracy import SampleResult, score_sample
from asr_doge.benchmark.progress import Finished, Progress
from asr_doge.benchmark.results import Throughput
from asr_doge.data.manifest import Utterance
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.progress import progress_bar

Outcome = Transcription | FailedTranscription


def transcribe_and_score(
    samples: Sequence[Utterance],
    transcribe_each: Callable[[Iterable[Utterance]], Iterator[Outcome]],
    progress: Progress,
    title: str,
) -> tuple[list[SampleResult], Throughput]:
    """Transcribe by `transcribe_each`, in order, what `progress` does not hold yet, and score everything."""
    known = {sample.id: found for sample in samples if (found := progress.finished(sample)) is not None}
    if known:
        tqdm.write(f"{title}: {len(known)} of {len(samples)} are finished already", file=sys.stderr)
    outcomes = transcribe_each(sample for sample in samples if sample.id not in known)
    results, audio_seconds, seconds = [], 0.0, 0.0
    for sample in progress_bar(samples, desc=title, unit="utt"):
        outcome = known.get(sample.id) or _next(outcomes, sample, progress)
        if isinstance(outcome, FailedTranscription):
            results.append(score_sample(sample, "", str(outcome.error)))
            continue
        # The recording's own length, not the manifest's.
        scored = score_sample(replace(sample, duration=outcome.duration), outcome.text)
        results.append(replace(scored, incomplete=outcome.incomplete))
        audio_seconds += outcome.duration
        seconds += outcome.seconds
    return results, Throughput(audio_seconds, seconds)


def _next(outcomes: Iterator[Outcome], sample: Utterance, progress: Progress) -> Finished | FailedTranscription:
    """The outcome of a sample, stored if it is a transcript; an unreadable recording is tried again next time."""
    start = time.perf_counter()
    outcome = next(outcomes)
    if isinstance(outcome, FailedTranscription):
        return outcome
    return progress.add(sample, outcome, time.perf_counter() - start)
