"""Versions of one contract: ``schemas/NAME/v1.json``, ``v2.json``, ... live at the same time, and every later one only adds.

    NAME/vN.json or NAME/vN.avsc   the versions; all of one kind
    NAME/ids.json                  {"SCHEMA ID": VERSION}: what a schema registry has called them; without the file the id of a
                                   version is its number

The folder is the registry: none is asked over HTTP, so a job starts and reads whether or not one is up. A reader of version N
accepts events of all versions up to N, and what an older event lacks is null. A change that is not additive is another contract:
a new folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from featurestore.definitions.contract import breaking_changes
from featurestore.errors import BreakingChangeError, ContractError

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore.definitions.contract import Contract

_FILE = re.compile(r"v([1-9]\d{0,8})\.(json|avsc)")


def with_versions(contract: Contract, path: Path) -> Contract:
    """Return a contract with the versions before it in its folder, and the schema ids of them all.

    Raises:
        ContractError: Another version, or ids.json, cannot be used.
        BreakingChangeError: A version does not only add to those before it.
    """
    from featurestore.definitions.contract import Contract

    found = {}
    if _FILE.fullmatch(path.name):
        for file in sorted(path.parent.iterdir()):
            match = _FILE.fullmatch(file.name)
            if match and int(match[1]) <= contract.version and file != path:
                number = int(match[1])
                if number in found or number == contract.version:
                    raise ContractError(
                        f"contract {contract.name}: version {number} is there twice, in {path.parent}.",
                        hint="keep one of vN.json and vN.avsc.",
                    )
                found[number] = Contract.load_one(file)
    earlier = tuple(found[number] for number in sorted(found))
    newest = replace(contract, earlier=earlier, ids=_ids(path.parent / "ids.json", contract, earlier))
    chain = [*earlier, contract]
    for older, newer in [*pairwise(chain), *((each, contract) for each in earlier)]:
        refuse_break(older, newer)
    return newest


def refuse_break(older: Contract, newer: Contract) -> None:
    """Raise unless all events of one version are events of another.

    Raises:
        BreakingChangeError: They are not; the message names the field.
    """
    broken = breaking_changes(older, newer)
    if (older.avro is None) != (newer.avro is None):
        broken.insert(0, f"it is {'JSON' if newer.avro is None else 'Avro'} now.")
    if broken:
        raise BreakingChangeError(
            f"contract {newer.name}: version {newer.version} does not only add to version {older.version}: {broken[0]}",
            hint=f"a break is a new contract, such as schemas/{newer.name}_2/v1, and a source of its own.",
        )


def _ids(path: Path, contract: Contract, earlier: tuple[Contract, ...]) -> dict[int, int]:
    versions = {each.version for each in (*earlier, contract)}
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        ids = {int(name): version for name, version in read.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ContractError(f'{path}: must be {{"SCHEMA ID": VERSION, ...}}: {error}.') from None
    for name, version in ids.items():
        if type(version) is not int or not 0 <= name < 2**32:
            raise ContractError(f"{path}: {name}: {version!r} is no version of a schema id of 32 bits.")
    return {name: version for name, version in sorted(ids.items()) if version in versions}
