"""A message's headers, whatever stands in them."""

from __future__ import annotations

from operator import methodcaller
from typing import Final

from confluent_kafka import Message

Headers = list[tuple[str, bytes | None]]
# The client's method returns with an error set. Called so, the interpreter sees that and raises; a plain call, once it
# is hot, goes past that check, and the error comes up somewhere later.
_asked: Final = methodcaller("headers")


def headers_of(message: Message) -> Headers | None:
    """Names and values in their order; None when they cannot be read: the client decodes every name, and one is no
    UTF-8. It raises SystemError then, whose cause says so.

    At most once for each message: asked again, it gives the list that it did not finish, and reading that ends the
    process (confluent-kafka 2.16).
    """
    try:
        found: Headers = _asked(message) or []
    except SystemError as exc:
        if not isinstance(exc.__cause__, UnicodeDecodeError):
            raise
        return None
    return found
