"""Mix corpora for training: each manifest so many times.

Example, human speech four times for each time that synthetic speech is heard:
    python scripts/mix_manifests.py ./human/train.jsonl=4 ./read_speech/train.jsonl=1 --output ./mixed/train.jsonl

Promises: a recording is listed that many times under ids of its own, so that `asr-doge train --augment true` varies it
anew each time; texts are normalized as `asr-doge process` does it.
It opens no recording.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from asr_doge.data.manifest import Utterance, read_manifest, write_manifest
from asr_doge.errors import ASRDogeError, DataError
from asr_doge.text.normalization import normalize_training_text


def repeated(place: int, argument: str, longest: float) -> list[Utterance]:
    """The utterances of `MANIFEST=TIMES` that are no longer than `longest` seconds and have words.

    Their ids begin with the place of the argument, since corpora may have the same ones.
    """
    name, _, times = argument.rpartition("=")
    if not name or not times.isdecimal() or int(times) < 1:
        raise DataError(f"{argument}: give MANIFEST=TIMES, such as ./human/train.jsonl=4")
    every = read_manifest(Path(name))
    short = [replace(one, text=normalize_training_text(one.text)) for one in every if one.duration <= longest]
    kept = [one for one in short if one.text]
    print(f"{name}: {len(kept)} of {len(every)} utterances, {times} times")
    return [replace(one, id=f"{place}-{one.id}-{number}") for number in range(int(times)) for one in kept]


def main() -> int:
    """Read the flags and write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST=TIMES", help="a manifest and a number")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write")
    parser.add_argument("--longest", type=float, default=16.0, help="seconds of the longest recording (default: 16)")
    flags = parser.parse_args()
    try:
        parts = [repeated(place, argument, flags.longest) for place, argument in enumerate(flags.manifests, start=1)]
        mixed = [utterance for part in parts for utterance in part]
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(flags.output, mixed)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    hours = sum(utterance.duration for utterance in mixed) / 3600
    print(f"{len(mixed)} utterances, {hours:.1f} h: {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
