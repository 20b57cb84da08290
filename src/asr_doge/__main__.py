"""`python -m asr_doge` is `asr-doge`."""

from asr_doge.cli import run

run()
