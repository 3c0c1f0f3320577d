from __future__ import annotations

import pytest

from examples.flights.data import Flights, load
from examples.flights.stream import Stream, build_stream


@pytest.fixture(scope="session")
def flights() -> Flights:
    return load()


@pytest.fixture(scope="session")
def stream(flights: Flights) -> Stream:
    return build_stream(flights)
