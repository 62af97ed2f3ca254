"""Which addresses may be asked, and where the key for them comes from."""

import os
import re
from urllib.parse import urlsplit

from dualign.errors import ConfigError, MissingError

SCHEMES = ("http", "https")
# Upper case alone: that is how variables are named, and how the keys of the known services are not.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
KEY = re.compile(r"[\x21-\x7e]+")


def check_url(url: str) -> None:
    """Check an address. No message repeats it: where it holds a password, that must not reach a log.

    Raises:
        ValueError: it is not http or https, names no host, or holds a password, a fragment or a blank.
    """
    if not KEY.fullmatch(url):
        raise ValueError("url: blanks and characters outside ASCII must be written as %XX")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"url: scheme {parts.scheme!r}; http:// or https:// is needed")
    if not host:
        raise ValueError("url: names no host; such as https://judge.example.org/score")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: holds a user name or password; keep the key in an environment variable, see key_from")
    if parts.fragment:
        raise ValueError("url: has a fragment (#...), which no server gets to see")


def check_variable(name: str) -> None:
    """Check that ``name`` can be that of a variable; it is not repeated, for it may be the key itself.

    Raises:
        ValueError: it is something else.
    """
    if not VARIABLE.fullmatch(name):
        raise ValueError(
            "key_from: not the name of an environment variable (A-Z, 0-9, _); the key itself must not stand here"
        )


def display_name(url: str) -> str:
    """Return host, port and path of an address, for people."""
    parts = urlsplit(url)
    return parts.netloc + parts.path.rstrip("/")


def read_key(variable: str | None, scorer: str) -> str | None:
    """Return the key that the environment variable holds, or none where no variable is named.

    Raises:
        MissingError: there is no such variable, or it is empty.
        ConfigError: what it holds cannot be sent in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise MissingError(f"scorer {scorer}: environment variable {variable} is not set; it must hold the key")
    if not KEY.fullmatch(key):
        raise ConfigError(f"scorer {scorer}: the key in {variable} holds blanks or characters outside ASCII")
    return key
