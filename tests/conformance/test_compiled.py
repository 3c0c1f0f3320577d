"""Compiled code gives to the bit what Python gives, one key or many, and leaves to it what is not plain."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from featurestore import (
    Count,
    FeatureView,
    First,
    Last,
    Max,
    Mean,
    Min,
    Sawtooth,
    SecondsSinceFirst,
    SecondsSinceLast,
    Sum,
)
from featurestore.online.batch import BatchReader
from featurestore.online.codec import parse_frame
from featurestore.online.compiled import SWITCH, compiled, serves
from featurestore.online.loading import kernel
from featurestore.online.opcodes import MOST_RECORDS
from featurestore.online.reader import ViewReader
from tests.conformance.cases import CARD, EXACT, MANY, SOURCE, VIEWS
from tests.conformance.support import SECOND, one
from tests.conformance.test_batch import LATE, one_by_one, outcome, stored
from tests.conformance.test_online import Store
from tests.effort import tries

# A window of 15 minutes that begins earlier than one of 16: it begins on a coarser grid.
PLAIN = FeatureView(
    "plain",
    CARD,
    SOURCE,
    {
        **{
            f"{kind.__name__.lower()}_{column}": kind(column).over("10m", Sawtooth("15m", hop="15m"), "16m", "lifetime")
            for kind in (Sum, Mean, Min, Max, First, Last)
            for column in ("amount", "points", "online")
        },
        "n": Count().over("1h"),
        "shipped": Max("shipped").over("1h"),
        "age": SecondsSinceFirst().over("1h", "lifetime"),
        "pause": SecondsSinceLast("amount").over("10m", "lifetime"),
    },
)
SERVED = [PLAIN, *(view for view in VIEWS if serves(view.layout))]
NUMBERS = [0, 1, -1, 2**31, 2**53 - 1, 2**53, -(2**53), 2**61, 2**62, -(2**62), 2**63 - 1, -(2**63)] + [
    struct.unpack("<q", struct.pack("<d", number))[0]
    for number in (0.0, -0.0, 1e308, -1e308, 5e-324, 1.5, float("inf"), float("-inf"), float("nan"))
]


def readers(view):
    """Return the reader in Python, the same with compiled code, and what the latter does with many keys."""
    code = compiled(view.layout)
    assert code is not None
    fast = ViewReader(view.layout, code)
    return ViewReader(view.layout), fast, BatchReader(fast)


def check(view, blobs, t, *, exact_time):
    """Compare all ways to read; return whether there were values, and how many blobs compiled code took."""
    plain, fast, batch = readers(view)
    expected = outcome(one_by_one(plain), blobs, t, exact_time=exact_time)
    assert outcome(one_by_one(fast), blobs, t, exact_time=exact_time) == expected
    many = outcome(batch.read, blobs, t, exact_time=exact_time)
    if isinstance(expected, tuple):
        assert many[0] is expected[0]  # of several bad keys either way says one
    else:
        assert many == expected, t
    check_numbers(fast, [blob for blob in blobs if blob is not None], t, exact_time=exact_time)
    taken = [blob is not None and fast.compiled.read(blob, t, exact_time=exact_time) is not None for blob in blobs]
    return not isinstance(expected, tuple), sum(taken)


def check_numbers(fast, known, t, *, exact_time):
    """Compare the numbers with the values of all keys that have a record, wherever compiled code takes them."""
    code, around = fast.compiled, (1, 2)  # columns that are another view's
    for blobs in [known, *([blob] for blob in known[:3])]:
        numbers = np.full((len(blobs), len(code._places) + sum(around)), 7.5, dtype=np.float32)
        nulls = np.full(len(blobs), 1)
        found = code.numbers(blobs, t, numbers, nulls, first=around[0], exact_time=exact_time)
        assert found == (code.columns(blobs, t, exact_time=exact_time) is not None)
        if not found:
            continue
        values = [fast.read([blob], t, exact_time=exact_time).values for blob in blobs]
        expected = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(numbers[:, around[0] : -around[1]], expected.astype(np.float32))
        assert (numbers[:, 0] == 7.5).all()
        assert (numbers[:, -around[1] :] == 7.5).all()
        assert nulls.tolist() == [1 + row.count(None) for row in values]


def test_what_is_compiled_into_the_kernel_and_lies_beside_it_is_told_in_it():
    """Else a change there would run with machine code of before, which is kept by the text of the kernel's file alone."""
    code = kernel()
    folder = Path(code.__file__).parent
    beside = b"".join((folder / name).read_bytes() for name in ("kernel_partials.py", "opcodes.py", "words.py"))
    assert f"{code.MADE_OF:08X}" == f"{crc32(beside):08X}"


def test_numba_is_there_and_common_views_are_served():
    assert kernel() is not None
    assert len(SERVED) >= 6
    assert len(SERVED) < len(VIEWS)


@pytest.mark.parametrize("seed", range(tries(5)))
@pytest.mark.parametrize("view", SERVED, ids=lambda view: view.name)
def test_compiled_code_gives_what_python_gives(view, seed):
    blobs, times = stored(view, seed)
    found = [check(view, blobs, t, exact_time=exact) for t in times for exact in (False, True)]
    answered, taken = map(sum, zip(*found, strict=True))
    assert answered > len(times)
    assert taken > answered  # not left to Python


@pytest.mark.parametrize("view", SERVED, ids=lambda view: view.name)
def test_whatever_the_numbers_are(view):
    """Counts below zero, sums beyond int64, infinities: those of rows and records are exchanged, where the frame still holds."""
    blobs = [blob for blob in stored(view, 3)[0] if blob is not None]
    (part,) = view.layout.parts
    dice, taken = random.Random(11), 0
    for _ in range(tries(150)):
        spoiled = []
        for blob in dice.sample(blobs, 2):
            words = list(struct.unpack(f"<{len(blob) // 8}q", blob))
            first = parse_frame(blob, part).ladders[0][0] // 8
            for _ in range(dice.choice([1, 1, 2, 5])):
                words[dice.randrange(first, len(words))] = dice.choice(NUMBERS)
            spoiled.append(struct.pack(f"<{len(words)}q", *words))
        _, one_taken = check(view, [*spoiled, None], LATE, exact_time=dice.random() < 0.5)
        taken += one_taken
    assert taken > tries(150) // 10


@pytest.mark.parametrize("view", SERVED, ids=lambda view: view.name)
def test_damaged_blobs_are_refused_as_in_python(view):
    blobs = [blob for blob in stored(view, 4)[0] if blob is not None]
    dice, refused = random.Random(5), 0
    for _ in range(tries(150)):
        blob = bytearray(dice.choice(blobs))
        kind = dice.randrange(4)
        if kind == 0:
            blob[dice.randrange(40)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del blob[dice.randrange(len(blob)) :]
        elif kind == 2:
            blob += dice.randbytes(8 * dice.randrange(20))
        else:
            blob[32 + 4 * dice.randrange(2) : 36] = dice.choice(NUMBERS).to_bytes(8, "little", signed=True)[:4]
        answered, _ = check(view, [bytes(blob), blobs[0]], LATE, exact_time=False)
        refused += not answered
    assert refused


@pytest.mark.parametrize("tail", [0, 3, MOST_RECORDS, MOST_RECORDS + 1])
@pytest.mark.parametrize("view", [EXACT, MANY, PLAIN], ids=lambda view: view.name)
def test_long_tails_of_many_keys_and_a_time_of_each(view, tail):
    store = Store(view)
    events = [
        one(number // 3 * SECOND, card=f"c{number % 2}", offset=number, amount=number / 7, points=number)
        for number in range(2 * MOST_RECORDS + 80)
    ]
    random.Random(tail).shuffle(events)  # so that the tail is not in order
    store.append(events[: len(events) - 2 * tail])
    store.fold(list(store.blobs), LATE)
    for event in events[len(events) - 2 * tail :]:
        store.append([event])
    blobs = [blob for (blob,) in store.blobs.values()]
    last = max(event.event_time for event in events)
    for t in (last + 1, last + 300 * SECOND, last + 4_000 * SECOND):
        assert check(view, blobs, t, exact_time=True)[0]
    assert check(view, blobs * 20, t, exact_time=True)[0]
    plain, fast, batch = readers(view)
    times = [last - 90 * SECOND, last + 7 * SECOND]
    apart = [plain.read([blob], t, exact_time=False) for blob, t in zip(blobs, times, strict=True)]
    assert outcome(batch.read, blobs, times, exact_time=False) == [(repr(a.values), a.known, a.as_of) for a in apart]
    longest = max((len(blob) - parse_frame(blob, view.layout.parts[0]).base_length) for blob in blobs)
    took = [fast.compiled.read(blob, LATE, exact_time=True) is not None for blob in blobs]
    assert all(took) or longest > 8 * MOST_RECORDS


@pytest.mark.thorough
def test_it_can_be_switched_off():
    code = (
        "import sys; from tests.conformance.test_compiled import PLAIN; from featurestore.online.compiled import compiled; "
        "print(compiled(PLAIN.layout) is None, 'numba' in sys.modules)"
    )
    for switch, said in (("0", "True False"), ("1", "False True")):
        done = subprocess.run(  # noqa: PLW1510 - what it said is looked at
            [sys.executable, "-c", code],
            env={**os.environ, SWITCH: switch},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == said, done.stderr


BESIDE = """
import os
from featurestore.online.loading import LOADING
from tests.conformance.test_compiled import LATE, PLAIN, stored
from featurestore.online.compiled import compiled
blobs = [blob for blob in stored(PLAIN, 3)[0] if blob is not None]
view = compiled(PLAIN.layout)
def reads():
    return any(view.read(blob, LATE, exact_time=False) for blob in blobs)
said = [view.is_there(), reads()]
{then}
"""


def test_it_is_loaded_beside_lookups_and_a_fork_and_the_end_of_the_process_wait_for_it():
    forked = (
        "child = os.fork()\n"
        "if child == 0: os._exit(40 + view.is_there())\n"
        "said += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), reads()]\n"
        "print(said)"
    )
    for then, expected in ((forked, "[False, False, 41, True]"), ("print(said)", "[False, False]")):
        done = subprocess.run(  # noqa: PLW1510 - what it said is looked at
            [sys.executable, "-W", "error", "-c", BESIDE.format(then=then)],
            env={name: value for name, value in os.environ.items() if name != SWITCH},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.stdout.strip(), done.stderr, done.returncode) == (expected, "", 0)
