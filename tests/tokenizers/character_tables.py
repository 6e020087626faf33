"""SentencePiece's tables of characters, as a `Precompiled` normalizer reads them: a double array and the texts it points to.

A node of the array is an integer of 32 bits. Bits 0 to 7 are the byte that leads to it, bit 8 says that a value stands at the
place of its zero byte, and bits 10 to 30 are its offset.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

SLOTS = 1 << 14


def table_of(changes: Mapping[str, str]) -> bytes:
    """A table that makes the second of each pair of the first."""
    keys = {text.encode(): place for place, text in enumerate(changes)}
    texts, starts = b"", []
    for text in changes.values():
        starts.append(len(texts))
        texts += text.encode() + b"\0"
    units, taken = [0] * SLOTS, {0}

    def place(node: int, prefix: bytes) -> None:
        following = sorted({key[len(prefix)] for key in keys if key.startswith(prefix) and key != prefix})
        wanted = [*following, *([0] if prefix in keys else [])]
        base = next(base for base in range(1, SLOTS >> 1) if not taken & {base ^ byte for byte in wanted})
        taken.update(base ^ byte for byte in wanted)
        units[node] |= (node ^ base) << 10 | (prefix in keys) << 8
        if prefix in keys:
            units[base] = starts[keys[prefix]]
        for byte in following:
            units[base ^ byte] |= byte
            place(base ^ byte, prefix + bytes([byte]))

    place(0, b"")
    array = struct.pack(f"<{SLOTS}I", *units)
    return struct.pack("<I", len(array)) + array + texts


BLANKS = dict.fromkeys(("\t", "\n", "\r", "\xa0", "\u2028", "\u200b", "\u3000", "\x85"), " ")
TABLE = table_of(BLANKS | {"ﬁ": "fi", "Ａ": "A", "é": "e\u0301", "\x00": "", "\ufeff": "", "。": ".", "\u0600": "x "})
"""Some of what SentencePiece's own table does, and more that is awkward."""
