"""Serves the models in argv[1]; a lookup of card "slow" says so and waits for a line on standard input."""

from __future__ import annotations

import sys

from featurestore.scoring.service import serve
from tests.unit.scoring.support import MemoryReader


class WaitingReader(MemoryReader):
    def get_many(self, service, keys, *, now=None, request=None):
        if any(key["card_id"] == "slow" for key in keys):
            print("looking up", flush=True)
            sys.stdin.readline()
        return super().get_many(service, keys, now=now)

    def close(self):
        print("closed", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], WaitingReader, port=0)
    print("returned", flush=True)
