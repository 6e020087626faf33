"""Keeps secrets and control characters out of messages and files.

Secrets come from URLs (a password, a signed query), from settings and environment variables whose names say so (`api_key`), and
from error texts of libraries that quote them. Everything that is printed or saved passes through `redacted`. The configuration
refuses secrets that a checkpoint would hold.

Text from outside, such as names of files, members of a tar, answers of a server and documents, may hold anything. An escape
sequence clears the screen, and some characters reverse the reading direction. Everything that is printed passes through
`printable`. A name inside a line passes through `one_line`.

Such text may also be of any length. Messages are cut to `LONGEST_MESSAGE_CHARS`, and `brief` shortens one value in them. The
results of a command are never cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

SECRET_NAME = re.compile(
    r"secret|passw|passphrase|credential|api_?key|authorization|(?<![a-z])(key|token)s?(?![a-z])", re.IGNORECASE
)
CLEAR_NAME = re.compile(r"secret|passw|passphrase|credential|api[_-]?key|authorization", re.IGNORECASE)
"""Names of secrets even if the value is a number."""
PLACE_NAME = re.compile(r"_(file|dir|path)$", re.IGNORECASE)
"""The place of a secret is not a secret."""
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Characters. A shorter value of the environment is hardly a credential, and would match in the middle of words."""
LONGEST_MESSAGE_CHARS = 16_000
"""Room for a long traceback in the log of a rank."""
HIDDEN = "<hidden>"
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than line end and tab, line separators, marks of the reading direction, and lone surrogates."""


def shown(url: str) -> str:
    """A URL without user, password and query, which may be secrets: for messages."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    if scheme.lower() != "s3":  # the name of an object on S3 may contain ? and #
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text without the secrets that we can know of: those in its URLs, and secret values of the environment."""
    for name in list(environment):
        value = environment.get(name, "")  # another thread may have removed it
        if len(value) >= SHORTEST_SECRET and value in text and is_secret_name(name):
            text = text.replace(value, HIDDEN)
    return URL.sub(lambda match: shown(match[0]), text)


def printable(text: str) -> str:
    """A text with control characters written out: `\\x1b` for an escape, `\\u202e` for a change of the reading direction.

    Line ends, tabs and all letters, accents and emoji stay.
    """
    return UNPRINTABLE.sub(_escape, text)


def one_line(text: str) -> str:
    """Like `printable`, but line ends and tabs are written out too, as `\\n` and `\\t`: for a name inside a line."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def sayable(text: str) -> str:
    """A message that may be printed and saved: without known secrets, printable, and not too long."""
    return shortened(printable(redacted(text)))  # cut last: half a secret would not be recognised


def shortened(text: str, most: int = LONGEST_MESSAGE_CHARS) -> str:
    """The text, or its first and last part with a note of how many characters are left out between them.

    Args:
        most: characters that are kept in all.
    """
    if len(text) <= most:
        return text
    begin, end = most - most // 2, len(text) - most // 2
    return f"{text[:begin]}[... {end - begin:,} characters left out ...]{text[end:]}"


def brief(value: object, most: int = 200) -> str:
    """`repr` of a value from outside, cut to about `most` characters: for one value in a message."""
    return shortened(repr(value), most)


def is_secret_name(name: str) -> bool:
    """Whether the name of a key or variable suggests a secret. `COMET_API_KEY` does, `TOKENIZERS_PARALLELISM` does not."""
    name = name.replace("-", "_")
    return bool(SECRET_NAME.search(name)) and not PLACE_NAME.search(name)


def secret_keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a plain tree that have the name of a secret, and hold a text. `max_tokens: 512` is none, and
    `password: 12345678` is."""
    for key, value in _items(tree):
        path = f"{prefix}{key}"
        holds = value if isinstance(value, str) else CLEAR_NAME.search(str(key)) and _has_value(value)
        if holds and is_secret_name(str(key)):
            yield path
        yield from secret_keys(value, f"{path}.")


def secret_urls(tree: object, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a plain tree that hold a URL with a user or a password."""
    for key, value in _items(tree):
        path = f"{prefix}{key}"
        if isinstance(value, str) and any("@" in _authority(match[0]) for match in URL.finditer(value)):
            yield path
        yield from secret_urls(value, f"{path}.")


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def _has_value(value: object) -> bool:
    """Whether it is a number, or a list with something in it. The keys of a mapping are looked at one by one."""
    return type(value) in (int, float) or (isinstance(value, list | tuple) and bool(value))


def _items(tree: object) -> Iterator[tuple[object, object]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from enumerate(tree)


def _authority(url: str) -> str:
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
