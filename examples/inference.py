"""Transcribe one recording from Python.

Example:
    python examples/inference.py --audio_path recording.wav
    python examples/inference.py --checkpoint_dir ./checkpoints/best --audio_path recording.wav
"""

import argparse
import sys

import asr_doge
from asr_doge.errors import ASRDogeError


def main() -> int:
    """Load a checkpoint, transcribe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint_dir", default="english", help="checkpoint folder, hub id, english (default) or nano"
    )
    parser.add_argument("--audio_path", required=True, help="recording to transcribe")
    flags = parser.parse_args()
    try:
        result = asr_doge.load(flags.checkpoint_dir).transcribe(flags.audio_path)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
