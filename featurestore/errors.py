"""Every error this package raises, so that a caller never catches a dependency's exception.

::

    FeatureStoreError
    ├── ConfigError (ValueError)              featurestore.toml or FEATURESTORE_* is unusable
    ├── DefinitionError (ValueError)          raised while defining or planning, never while serving
    │   ├── UnknownNameError (LookupError)    a view, feature, column, key or service that does not exist
    │   ├── DuplicateNameError                two things claim one name
    │   ├── ExpressionError                   a row expression that does not parse, type or belong to the allow-list
    │   ├── WindowError                       a hop does not divide its window, a bound cannot be reached
    │   └── BreakingChangeError               a changed definition that must become a new version
    ├── ContractError (ValueError)            a schema file, or an event against its schema
    ├── OfflineError
    │   ├── SpineError (ValueError)           a spine without key or time, a naive timestamp
    │   └── OfflineStoreUnavailableError
    ├── OnlineError
    │   ├── OnlineStoreUnavailableError (ConnectionError)
    │   ├── OnlineStoreTimeoutError (TimeoutError)
    │   ├── CodecError (ValueError)           bytes in the store that are not what this version writes
    │   ├── PastLookupError (ValueError)      an explicit time before what the store has already folded
    │   ├── FenceError                        another writer moved the fence: a zombie or a second driver
    │   ├── OnlineStoreLostError              the store is not the one a job wrote to: emptied, older, or being rebuilt
    │   └── StaleFeatureError                 only where a policy asks for it
    ├── BrokerUnavailableError (ConnectionError)
    ├── JobError
    │   ├── CheckpointMismatchError
    │   ├── LeaseError                        another job writes the same views, or has taken them over
    │   ├── OffsetsGoneError                  Kafka has deleted records that a job has not read yet
    │   ├── QuarantineLimitError              more of a source's records violate its contract than it allows
    │   └── SubmitError
    ├── StackError                            Java, a jar or a local server is missing or did not start
    └── ScoringError
        ├── ModelError                        a model file that is refused
        ├── ModelRegistryUnavailableError (ConnectionError)
        └── ModelInputError (ValueError)      a request the model cannot take

A message says what, where, the value and what is allowed; ``hint`` says what to do next. Errors survive pickling,
because Spark executors send them to the driver that way.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class FeatureStoreError(Exception):
    """Root of the tree. ``str(error)`` is one line: the message, then the hint.

    Attributes:
        message: What went wrong, where, with which value.
        hint: What to do next; None when the message says it all.
        context: Names that locate the problem (view, topic, partition, offset, ...); never secrets.
    """

    def __init__(self, message: str, *, hint: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} Hint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.context)


def _rebuild(
    cls: type[FeatureStoreError], message: str, hint: str | None, context: dict[str, Any]
) -> FeatureStoreError:
    return cls(message, hint=hint, **context)


class ConfigError(FeatureStoreError, ValueError):
    """featurestore.toml or a FEATURESTORE_* variable is unreadable, unknown or has an illegal value."""


class DefinitionError(FeatureStoreError, ValueError):
    """A definition is invalid; raised while defining or planning, never while serving."""


class UnknownNameError(DefinitionError, LookupError):
    """A name that nothing defines."""


class DuplicateNameError(DefinitionError):
    """Two things claim the same name."""


class ExpressionError(DefinitionError):
    """A row expression that does not parse, has the wrong type or uses something outside the allow-list."""


class WindowError(DefinitionError):
    """A window whose hop does not divide it, or whose error bound cannot be reached."""


class BreakingChangeError(DefinitionError):
    """A changed definition that must become a new version."""


class ContractError(FeatureStoreError, ValueError):
    """A schema file that cannot be used, or an event that violates its schema."""


class OfflineError(FeatureStoreError):
    """The offline store or a training set failed."""


class SpineError(OfflineError, ValueError):
    """A spine without its key or time column, or with a naive timestamp."""


class OfflineStoreUnavailableError(OfflineError):
    """An offline table is missing or cannot be read."""


class OnlineError(FeatureStoreError):
    """The online store failed."""


class OnlineStoreUnavailableError(OnlineError, ConnectionError):
    """The online store cannot be reached or refuses to serve."""


class OnlineStoreTimeoutError(OnlineError, TimeoutError):
    """The online store did not answer within the deadline."""


class CodecError(OnlineError, ValueError):
    """Bytes that are not a value of this format version and view."""


class PastLookupError(OnlineError, ValueError):
    """A lookup for an explicit time earlier than what the stored value has already folded in."""


class FenceError(OnlineError):
    """The offset fence is not where this writer left it: a zombie writer or a second driver."""


class OnlineStoreLostError(OnlineError):
    """The online store is not the one that a job wrote to: it was emptied, is older, or is being rebuilt."""


class StaleFeatureError(OnlineError):
    """A value is older than its policy allows, and the policy says fail."""


class BrokerUnavailableError(FeatureStoreError, ConnectionError):
    """The Kafka broker cannot be reached, or a topic does not exist."""


class JobError(FeatureStoreError):
    """A streaming job failed."""


class CheckpointMismatchError(JobError):
    """A checkpoint that belongs to another job, definition or topic."""


class LeaseError(JobError):
    """Another job writes the same views of the project, or has taken them over."""


class OffsetsGoneError(JobError):
    """Kafka no longer has records that a job has not read yet."""


class QuarantineLimitError(JobError):
    """More of a source's records violate its contract than the source allows; a job stops before it passes them."""


class SubmitError(JobError):
    """spark-submit could not be started or refused the job."""


class StackError(FeatureStoreError):
    """Java, a jar or a local server is missing or did not start."""


class ScoringError(FeatureStoreError):
    """The scorer failed."""


class ModelError(ScoringError):
    """A model file or manifest that is refused."""


class ModelRegistryUnavailableError(ScoringError, ConnectionError):
    """The model registry cannot be reached or does not answer as one."""


class ModelInputError(ScoringError, ValueError):
    """A request that the model cannot take."""


def did_you_mean(name: str, known: Iterable[str], *, what: str = "names") -> str:
    """Return a hint that names the closest known name, or lists what exists.

    >>> did_you_mean("card_spent", ["card_spend", "merchant"])
    "did you mean 'card_spend'?"
    >>> did_you_mean("zzz", ["b", "a"], what="views")
    'known views: a, b.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return f"there are no {what} yet."
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known {what}: {shown}."
