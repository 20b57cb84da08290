"""`python -m asr_doge.cli` is `asr-doge`."""

import sys

from asr_doge.cli import main

sys.exit(main())
