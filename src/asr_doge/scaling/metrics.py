"""What a job on Ray has done, for Prometheus: Ray's own exporter has it, where `ray[default]` is installed.

Promises: counters only grow while a job runs; Ray puts `ray_` before the names. It imports Ray when a shard is done.
"""

from typing import Any

from asr_doge.scaling.shards import ShardReport

_COUNTERS = {
    "asr_doge_recordings_transcribed_total": "Recordings with a text.",
    "asr_doge_recordings_failed_total": "Recordings without one.",
    "asr_doge_audio_seconds_total": "Seconds of audio transcribed.",
    "asr_doge_work_seconds_total": "Seconds that workers spent on shards.",
}


class Metrics:
    """The counters of a job.

    Args:
        shards: shards to be done.
    """

    def __init__(self, shards: int) -> None:
        self._left = shards
        self._counters: dict[str, Any] = {}

    def count(self, report: ShardReport) -> None:
        """Add a shard; Ray must be connected to."""
        from ray.util.metrics import Counter, Gauge

        if not self._counters:
            self._counters = {name: Counter(name, description=what) for name, what in _COUNTERS.items()}
            self._gauge = Gauge("asr_doge_shards_left", description="Shards to be done.")
        self._left -= 1
        self._gauge.set(self._left)
        added = (report.transcribed, len(report.failures), report.audio_seconds, report.work_seconds)
        for counter, amount in zip(self._counters.values(), added, strict=True):
            if amount:
                counter.inc(amount)
