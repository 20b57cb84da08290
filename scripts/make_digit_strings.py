r"""Make digit strings out of recordings of single digits, to train or test a digit recognizer on human speech.

With `--synthesized`, strings spoken by espeak-ng (in the voices that nano's recipe trains on) are mixed in.

Example:
    python scripts/make_digit_strings.py --digits_dir ./fsdd --speakers lucas --takes all --split test \
        --output_dir ./digit_strings
    asr-doge process --dataset manifest --data_dir ./digit_strings --output_dir ./processed \
        --train_split "" --dev_split ""

Promises: strings of 2 to 8 digits by one speaker each, with silence between the digits; same seed, same strings.
It does not know whether a model has heard the speakers before.
"""

import argparse
import itertools
import sys
from pathlib import Path

from asr_doge.data.digits import read_fsdd, recorded_clips, split_voices, synthesized_clips, write_clips
from asr_doge.errors import ASRDogeError


def main() -> int:
    """Read the flags and write one split; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="corpus to write")
    parser.add_argument("--split", default="test", help="name of the split to write (default: test)")
    parser.add_argument("--speakers", nargs="*", default=[], help="speakers to take (default: all)")
    parser.add_argument("--takes", default="all", choices=["all", "train", "test"], help="recordings to take")
    parser.add_argument("--count", type=int, default=200, help="strings of each speaker (default: 200)")
    parser.add_argument("--without", nargs="*", default=[], help="speakers to leave out")
    parser.add_argument("--synthesized", type=int, default=0, help="strings spoken by espeak-ng to add (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of digits, takes and pauses (default: 0)")
    flags = parser.parse_args()
    try:
        recordings = read_fsdd(flags.digits_dir, flags.takes, only=flags.speakers, without=flags.without)
        clips = itertools.chain(
            recorded_clips(flags.count, recordings, flags.seed),
            synthesized_clips(flags.synthesized, split_voices().train, flags.seed) if flags.synthesized else (),
        )
        manifest = write_clips(flags.output_dir, flags.split, clips)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{flags.count} strings of each of {', '.join(sorted(recordings))}, {flags.synthesized} synthesized: {manifest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
