"""A shard's lines as the bytes of its file: JSON lines, or Parquet with a column for each field.

Promises: the same lines give the same bytes with the same version of Arrow; every shard has the same columns, those of
`docs/transcription.schema.json`; a field that a line lacks is null.
"""

import json
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from asr_doge.scaling.configuration import ShardFormat
from asr_doge.scaling.items import import_parquet


def encode(lines: Sequence[str], shard_format: ShardFormat) -> bytes:
    """The content of a shard's file.

    Raises:
        DataError: Arrow is needed and not installed.
    """
    if shard_format == "jsonl":
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    parquet = import_parquet("--format parquet")
    import pyarrow

    rows = [json.loads(re.sub(r"[\ud800-\udfff]", _escaped, line)) for line in lines]
    file = BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)), file)
    return file.getvalue()


def _escaped(surrogate: re.Match[str]) -> str:
    """JSON for a byte of a file name that is not UTF-8, spelled out, since Arrow takes text only."""
    return f"\\\\u{ord(surrogate[0]):04x}"


def _schema(arrow: Any) -> Any:
    text, number, count = arrow.string(), arrow.float64(), arrow.int64()

    def rows_of(**columns: Any) -> Any:
        return arrow.list_(arrow.struct(list(columns.items())))

    word = rows_of(text=text, start=number, end=number, confidence=number)
    alternative = rows_of(text=text, score=number)
    return arrow.schema(
        [
            ("version", count),
            ("model", text),
            ("path", text),
            ("offset", number),
            ("duration", number),
            ("text", text),
            ("segments", rows_of(text=text, start=number, end=number, words=word, alternatives=alternative)),
            ("guards", rows_of(guard=text, start=number, end=number)),
            ("passes", count),
            ("channel", count),
            ("notes", arrow.list_(text)),
            ("incomplete", text),
            ("error", text),
        ]
    )
