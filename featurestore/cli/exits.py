"""How a command ends: its exit code, and the one line that says why.

=====  =======================================================================================
code   meaning
=====  =======================================================================================
0      done
1      failed: a job, a conflict, or a fault of ours
2      usage: an unknown option, a missing argument
3      unreachable: the broker, the online store, the offline store or the model registry
4      invalid: a setting, definition, contract, name, key, spine or model
5      something is missing on this machine: Java, a jar, a server, pyspark
130    interrupted
=====  =======================================================================================
"""

from __future__ import annotations

from featurestore.errors import (
    BrokerUnavailableError,
    ConfigError,
    ContractError,
    DefinitionError,
    FeatureStoreError,
    ModelError,
    ModelInputError,
    ModelRegistryUnavailableError,
    OfflineStoreUnavailableError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    PastLookupError,
    SpineError,
    StackError,
)

OK, FAILED, USAGE, UNREACHABLE, INVALID, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_CODES: tuple[tuple[tuple[type[FeatureStoreError], ...], int], ...] = (
    (
        (
            BrokerUnavailableError,
            ModelRegistryUnavailableError,
            OfflineStoreUnavailableError,
            OnlineStoreTimeoutError,
            OnlineStoreUnavailableError,
        ),
        UNREACHABLE,
    ),
    (
        (ConfigError, ContractError, DefinitionError, ModelError, ModelInputError, PastLookupError, SpineError),
        INVALID,
    ),
    ((StackError,), MISSING),
)


def exit_code(error: FeatureStoreError) -> int:
    """Return the exit code of an error."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


def error_line(error: BaseException) -> str:
    """Return ``error: ...`` as one line, whatever line breaks a dependency put into it."""
    if isinstance(error, FeatureStoreError):
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error} Hint: run it again with --debug to see where."
    return "error: " + " ".join(text.split())
