"""What messages and files do not show: secrets, and characters that a terminal would obey.

Secrets come in by four ways: a user and password or a signed query inside a URL, a value below a key whose name says so
(`api_key`), a variable of the environment whose name says so, and what a library puts into its error. Whatever is printed
or saved goes through `redacted`; the configuration refuses secrets that a checkpoint would hold.

Names of files, members of a tar, answers of a server and text of a corpus may hold anything: an escape sequence that clears the
screen, a character that turns the reading direction. Whatever is printed goes through `printable`; a name that is one of many
in a line goes through `one_line`.

They may also be of any length. What is said and saved is cut to `LONGEST_MESSAGE_CHARS`; `brief` shortens one value of it.
Results that a command was asked for are never cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

SECRET_NAME = re.compile(r"secret|passw|passphrase|credential|api_?key|(?<![a-z])(key|token)s?(?![a-z])", re.IGNORECASE)
PLACE_NAME = re.compile(r"_(file|dir|path)$", re.IGNORECASE)
"""Where a secret is kept is none."""
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Characters. A shorter value of the environment is no credential, and would be found in the middle of words."""
LONGEST_MESSAGE_CHARS = 16_000
"""Room for a long traceback in the log of a rank."""
HIDDEN = "<hidden>"
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for the line end and the tab, line separators, what sets the reading direction, and half characters."""


def shown(url: str) -> str:
    """A URL as messages may have it: without user, password and query, for these can be secrets."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    if scheme.lower() != "s3":  # an object of S3 may have any character in its name
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text without the secrets that can be known: those in its URLs, and values of the environment."""
    for name in list(environment):
        value = environment.get(name, "")  # another thread may have removed it meanwhile
        if len(value) >= SHORTEST_SECRET and value in text and is_secret_name(name):
            text = text.replace(value, HIDDEN)
    return URL.sub(lambda match: shown(match[0]), text)


def printable(text: str) -> str:
    """A text without characters that a terminal or a log would obey: `\\x1b` stands for an escape, `\\u202e` for a turn of the
    reading direction. Line ends and tabs stay, and so does every script, accent and emoji."""
    return UNPRINTABLE.sub(_escape, text)


def one_line(text: str) -> str:
    """As `printable`, for a name or a text that must not begin a new line: `\\n` and `\\t` are written out too."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def sayable(text: str) -> str:
    """A message as it may be said and saved: without known secrets, printable, and not too long."""
    return shortened(printable(redacted(text)))  # cut last: half a secret would not be known


def shortened(text: str, most: int = LONGEST_MESSAGE_CHARS) -> str:
    """A text of at most `most` characters and a note of how many were left out in its middle: both ends of a message say
    something."""
    if len(text) <= most:
        return text
    begin, end = most - most // 2, len(text) - most // 2
    return f"{text[:begin]}[... {end - begin:,} characters left out ...]{text[end:]}"


def brief(value: object, most: int = 200) -> str:
    """`repr` of a value from outside, shortened: for one of several in a message."""
    return shortened(repr(value), most)


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of this name holds a secret: `COMET_API_KEY`, `password`; not `TOKENIZERS_PARALLELISM`."""
    name = name.replace("-", "_")
    return bool(SECRET_NAME.search(name)) and not PLACE_NAME.search(name)


def secret_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a plain tree whose values are texts and by the keys' names secrets."""
    for key, value in _items(tree):
        path = f"{prefix}{key}"
        if isinstance(value, str) and value and is_secret_name(str(key)):
            yield path
        yield from secret_keys(value, f"{path}.")


def secret_urls(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a plain tree whose values are URLs with a user or password in them."""
    for key, value in _items(tree):
        path = f"{prefix}{key}"
        if isinstance(value, str) and any("@" in _authority(match[0]) for match in URL.finditer(value)):
            yield path
        yield from secret_urls(value, f"{path}.")


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def _items(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from enumerate(tree)


def _authority(url: str) -> str:
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
