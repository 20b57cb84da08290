"""Read lines of text files that may not be clean.

Promises: a file that is not entirely UTF-8 still gives its good lines, and marks the bad ones. It does not know what
the lines mean.
"""

import gzip
import zlib
from pathlib import Path

from asr_doge.errors import DataError

NOT_UTF8 = "not UTF-8; save the file as UTF-8"


def read_lines(path: Path) -> list[str]:
    """The lines of a file (a file ending in `.gz` is decompressed), without line ends and without a byte-order mark.

    Bytes that are not UTF-8 become lone surrogates, for `is_utf8` to find. Lines end in LF or CR LF only: U+2028 and
    similar characters may occur within a transcript.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: correct the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path} is not a complete gzip file: fetch or make it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from None
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return [line.removesuffix("\r") for line in text.split("\n")]


def is_utf8(line: str) -> bool:
    """Whether a line of `read_lines` was valid UTF-8."""
    return line.isascii() or not any("\udc80" <= character <= "\udcff" for character in line)
