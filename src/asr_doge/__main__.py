"""`python -m asr_doge` is `asr-doge`."""

import sys

from asr_doge.cli import main

sys.exit(main())
