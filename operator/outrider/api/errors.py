"""What can go wrong, by what has to happen next.

Adapters raise these and never a library's own exception, so that whoever calls them decides by kind: retry
(`Transient`), wait (`Waiting`), or stop until a person changes something (`Stalling`). Every error carries a reason
(a CamelCase word that becomes a condition's reason) and a sentence for a person: what happened, to what, with
numbers, and what to do next. Neither may hold a secret.
"""


class OutriderError(Exception):
    """Root of every error that Outrider raises on purpose."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Transient(OutriderError):
    """A dependency is down or busy: retry with back-off (1, 2, 4, 8 s and so on, capped).

    `retry_after` is the number of seconds that the dependency itself asked for, if it did (HTTP Retry-After).
    """

    def __init__(self, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason, message)
        self.retry_after = retry_after


class Waiting(OutriderError):
    """Nothing is wrong, but something else has to happen first; look again after `after` seconds at the latest."""

    def __init__(self, reason: str, message: str, *, after: float) -> None:
        super().__init__(reason, message)
        self.after = after


class Stalling(OutriderError):
    """A person must act: no retry until the object, or something that it depends on, changes."""
