"""MurmurHash3, 128 bits, x64 variant (Austin Appleby, public domain; variant of DataSketches: seed 9001), in numpy.

What DataSketches hashes: an integer as 8 bytes, a double as the 8 bytes of its bits (-0.0 as 0.0, every NaN as one NaN), a
text as UTF-8. Hashing many values of one length is one pass of vector operations.
"""

from __future__ import annotations

import numpy as np

SEED = 9001
_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_M1, _M2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_FIVE, _A1, _A2 = np.uint64(5), np.uint64(0x52DCE729), np.uint64(0x38495AB5)


def hash_words(words: np.ndarray, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return both halves of the hash of 8-byte values, as uint64."""
    return _hash_rows(np.ascontiguousarray(words, dtype=np.int64).view(np.uint8).reshape(-1, 8), seed)


def hash_texts(texts: list[bytes], seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return both halves of the hash of every byte string, as uint64."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    high, low = np.empty(len(texts), np.uint64), np.empty(len(texts), np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        data = np.frombuffer(b"".join([texts[row] for row in rows.tolist()]), np.uint8).reshape(len(rows), length)
        high[rows], low[rows] = _hash_rows(data, seed)
    return high, low


def _hash_rows(data: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of n byte strings of one length, shape (n, length)."""
    rows, length = data.shape
    blocks = length // 16
    padded = np.zeros((rows, 16 * (blocks + 1)), np.uint8)
    padded[:, :length] = data
    words = padded.view("<u8").astype(np.uint64)
    h1, h2 = np.full(rows, seed, np.uint64), np.full(rows, seed, np.uint64)
    for block in range(blocks):
        h1 = (_rotate(h1 ^ _first(words[:, 2 * block]), 27) + h2) * _FIVE + _A1
        h2 = (_rotate(h2 ^ _second(words[:, 2 * block + 1]), 31) + h1) * _FIVE + _A2
    h2 = h2 ^ _second(words[:, -1])  # of no bytes at all this is 0 and changes nothing
    h1 = h1 ^ _first(words[:, -2])
    h1, h2 = h1 ^ np.uint64(length), h2 ^ np.uint64(length)
    h1 = h1 + h2
    h2 = h2 + h1
    h1, h2 = _finish(h1), _finish(h2)
    h1 = h1 + h2
    return h1, h2 + h1


def _rotate(words: np.ndarray, bits: int) -> np.ndarray:
    return np.asarray((words << np.uint64(bits)) | (words >> np.uint64(64 - bits)))


def _first(words: np.ndarray) -> np.ndarray:
    return _rotate(words * _C1, 31) * _C2


def _second(words: np.ndarray) -> np.ndarray:
    return _rotate(words * _C2, 33) * _C1


def _finish(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(33))) * _M1
    words = (words ^ (words >> np.uint64(33))) * _M2
    return np.asarray(words ^ (words >> np.uint64(33)))
