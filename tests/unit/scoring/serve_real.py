"""Serves the models in argv[1] from the store at argv[2], with the options in argv[3]."""

from __future__ import annotations

import json
import sys

from featurestore.errors import FeatureStoreError
from featurestore.online.client import FeatureClient
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.listener import TlsFiles
from featurestore.scoring.service import serve


def main() -> None:
    root, url, text = sys.argv[1:]
    options = json.loads(text)
    limits = ScorerLimits.of(options.pop("limits", {}))
    tls = options.pop("tls", None)
    timeout = options.pop("timeout", "5s")
    serve(
        root,
        lambda: FeatureClient(url, timeout=timeout),
        port=0,
        limits=limits,
        tls=TlsFiles(**tls) if tls else None,
        **options,
    )
    print("returned", flush=True)


if __name__ == "__main__":
    try:
        main()
    except FeatureStoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")
