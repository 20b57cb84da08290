"""Fetch LibriSpeech; the same as `asr-doge download librispeech`, and with the same flags.

Example:
    python scripts/download_librispeech.py --output_dir ./data --splits train-clean-100 dev-clean test-clean
"""

import sys

from asr_doge.cli import main

if __name__ == "__main__":
    sys.exit(main(["download", "librispeech", *sys.argv[1:]]))
