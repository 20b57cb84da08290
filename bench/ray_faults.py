"""Recordings plus one percent of poison through a Ray cluster of two nodes, one of which is killed midway.

Promises: it exits with 1 unless every recording is there once, each poison is named, and all other texts equal those of
the local engine. Poison is of three kinds in turn: no audio, an empty file, and a recording that ends the worker that
takes it (as the system does for want of memory). Both nodes are on this machine, one core each; with decode workers,
each has room for those of both. Memory is what a kind of process holds at most, of all its processes at the time and
their forks; what several share counts once (Linux). It is looked at every five seconds.

    python bench/ray_faults.py --data_dir ./speechocean762/test --model nano
    python bench/ray_faults.py --data_dir ./speechocean762/test --model nano --decode_workers 1
"""

import argparse
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from asr_doge.audio.folders import find_audio_files
from asr_doge.inference.output import Result
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item
from asr_doge.scaling.jobs import JobSummary, run_transcribe_job
from asr_doge.scaling.transcribing import TranscribeWorker

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
KINDS = ("text", "empty", "kill")


class MortalWorker(TranscribeWorker):
    """A worker that some recordings kill."""

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """As of `TranscribeWorker`, unless it dies."""
        if any("-poison-kill" in item.url for item in items):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().results(items)


def make_corpus(source: Path, folder: Path) -> int:
    """Link the recordings, and put a poison after every hundredth; returns how many recordings there are."""
    recordings = find_audio_files(source)
    for number, recording in enumerate(recordings):
        (folder / f"{number:06}{recording.suffix}").symlink_to(recording.resolve())
        if number % 100 == 99:
            kind = KINDS[number // 100 % len(KINDS)]
            poison = folder / f"{number:06}-poison-{kind}.wav"
            if kind == "kill":
                shutil.copyfile(recording, poison)
            else:
                poison.write_text("no audio" if kind == "text" else "")
    return len(recordings)


def lines(output: Path) -> list[dict[str, Any]]:
    """All lines of a job."""
    return [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_text().splitlines()]


def megabytes() -> dict[str, float]:
    """What kinds of Ray's actors hold now, with their forks."""
    held: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            lineage = [process, *process.parents()]
            actors = [name for name in (one.cmdline()[:1] for one in lineage) if name and name[0].startswith("ray::")]
            kind = actors[0][0].removeprefix("ray::").partition(".")[0] if actors else "Ray itself"
            held[kind] = held.get(kind, 0.0) + process.memory_full_info().pss / 1e6
    return held


def watch(most: dict[str, float], is_over: threading.Event) -> None:
    """Note the most that each kind holds."""
    while not is_over.wait(5):
        for kind, amount in megabytes().items():
            most[kind] = max(most.get(kind, 0.0), amount)


def through_a_cluster(config: TranscribeJobConfig, output: Path, shards: int, most: dict[str, float]) -> JobSummary:
    """Run a job on two nodes, and kill one when half of its shards are complete."""
    node = NODE | {"num_cpus": 2 + 2 * config.decode_workers if config.decode_workers else 1}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    victim = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def kill() -> None:
        while len(list(output.glob("*.done.json"))) < shards / 2:
            time.sleep(0.5)
        cluster.remove_node(victim, allow_graceful=False)
        print("one of two nodes is killed")

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    is_over = threading.Event()
    threading.Thread(target=watch, args=(most, is_over), daemon=True).start()
    try:
        return run_transcribe_job(config, MortalWorker)
    finally:
        is_over.set()
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Run both engines and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--shard_size", type=int, default=64)
    parser.add_argument("--decode_workers", type=int, default=0, help="for each worker")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder, local, cluster = (Path(temporary) / name for name in ("in", "local", "cluster"))
        folder.mkdir()
        count = make_corpus(arguments.data_dir, folder)
        good = sorted(str(path) for path in folder.iterdir() if "-poison-" not in path.name)
        poison = sorted(str(path) for path in folder.iterdir() if "-poison-" in path.name)
        settings: dict[str, Any] = {"model": arguments.model, "shard_size": arguments.shard_size, "decoders": 1}
        run_transcribe_job(TranscribeJobConfig(good, output_dir=str(local), engine="local", **settings))
        shards = -(-len(good + poison) // arguments.shard_size)
        everything = TranscribeJobConfig(
            [str(folder)],
            output_dir=str(cluster),
            engine="ray",
            workers="1:2",
            max_attempts=2,
            wait_for_workers=300,  # a busy machine takes long to start one
            decode_workers=arguments.decode_workers,
            **settings,
        )
        most: dict[str, float] = {}
        summary = through_a_cluster(everything, cluster, shards, most)
        found = lines(cluster)
        expected = {line["path"]: line for line in lines(local)}
        same = sum(line == expected.get(line["path"]) for line in found)
        texts = sum(
            line.get("text") == expected[line["path"]].get("text") for line in found if line["path"] in expected
        )
        named = sorted(name for name, _ in summary.failed)
        is_right = sorted(line["path"] for line in found) == sorted(good + poison) and named == poison
        print(
            json.dumps(
                {
                    "recordings": count,
                    "poison": len(poison),
                    "each_once_and_poison_named": is_right,
                    "lines_equal_to_local": same,
                    "texts_equal_to_local": texts,
                    "seconds_on_the_cluster": summary.seconds,
                    "most_megabytes": {kind: round(amount) for kind, amount in sorted(most.items())},
                },
                indent=1,
            )
        )
        raise SystemExit(0 if is_right and texts == count else 1)


if __name__ == "__main__":
    main()
