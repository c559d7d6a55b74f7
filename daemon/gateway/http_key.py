"""The key that HTTP clients have to give, in a file of its own."""

from __future__ import annotations

from pathlib import Path

from sapwood.daemon.errors import StartError

_CHARACTERS_MIN, _CHARACTERS_MAX = 16, 1024


def read_key(path: Path) -> str:
    """The file's one line. Raises StartError, without a word of what is in it."""
    try:
        with path.open("rb") as file:
            key = file.read(_CHARACTERS_MAX + 2).decode("ascii").strip()
    except OSError as error:
        raise StartError(f"--http-key-file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartError(f"--http-key-file: {path}: a key is of ASCII characters") from None
    plain = all(33 <= ord(character) <= 126 for character in key)
    if not plain or not _CHARACTERS_MIN <= len(key) <= _CHARACTERS_MAX:
        wanted = f"{_CHARACTERS_MIN} to {_CHARACTERS_MAX} characters without spaces"
        raise StartError(f"--http-key-file: {path}: a key is one line of {wanted}")
    return key
