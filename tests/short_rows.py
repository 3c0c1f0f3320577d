"""The two forms of one blob: with short rows, as writers make it where they can, and whole, as it was and as it is elsewhere."""

from __future__ import annotations

import struct

from featurestore.online.codec import HEADER, counts_size


def whole_rows(part, blob):
    """Return the same blob in version 1: every row with the numbers of events of all its measures."""
    if blob is None or blob[2] == 1:
        return blob
    assert blob[2] == 2
    count = len(part.ladders)
    head, at = HEADER.unpack_from(blob), HEADER.size + counts_size(count)
    pieces = [blob[HEADER.size : at]]
    for rows, ladder in zip(struct.unpack_from(f"<{count}I", blob, HEADER.size), part.ladders, strict=True):
        pieces.append(blob[at : at + 8 * rows])
        at += 8 * rows
        for _ in range(rows):
            number = None
            for measure in (part.measures[each] for each in ladder.measures):
                for slot in range(len(measure.slots)):
                    if measure.is_counted and slot == 0 and number is not None:
                        pieces.append(number)
                        continue
                    word, at = blob[at : at + 8], at + 8
                    number = word if measure.is_counted and slot == 0 else number
                    pieces.append(word)
    assert at == head[3]
    body = b"".join(pieces)
    return HEADER.pack(head[0], 1, head[2], HEADER.size + len(body), *head[4:]) + body + blob[at:]
