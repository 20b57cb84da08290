"""Work on the blocks of a recording that never ends, run as a fork server that decodes."""

import threading
from collections.abc import Iterator

from asr_doge.audio.decoding_child import Blocks, main


def wait(blocks: Blocks, work_options: bytes) -> Iterator[bytes]:
    """Forever, with the first block."""
    for _ in blocks:
        threading.Event().wait()
        yield b""


if __name__ == "__main__":
    main(wait)
