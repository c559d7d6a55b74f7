"""Plain values into fields of the wire: one rule per kind of field, for whatever a caller gives.

- What a field takes is read from the contract, so a new field needs no line here. Ranges are those
  that the wire can carry; what a value may be in its field only the daemon knows.
- What does not fit raises TypeError or ValueError under the caller's name for the field, before
  anything is sent. No text of the caller's is in it.
- Numbers are whatever counts as one: NumPy's, a Fraction. A bool is none, text is none.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any, NoReturn, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as WireMessage

_M = TypeVar("_M", bound=WireMessage)
_T = TypeVar("_T")
_ENDLESS_S = 1e9
# Text and bytes can be iterated, and so can a mapping; as a list they are a mistake.
_NO_LISTS = (str, bytes, bytearray, Mapping)


def set_fields(message: _M, values: Mapping[str, Any], path: str = "") -> _M:
    """Sets the message's fields by name; `path` stands before their names in errors."""
    for name, value in values.items():
        field = cast("FieldDescriptor", message.DESCRIPTOR.fields_by_name[name])
        _set(message, field, value, f"{path}{name}")
    return message


def _set(message: WireMessage, field: FieldDescriptor, value: Any, path: str) -> None:
    if field.message_type is not None:  # of those only maps are filled from plain values
        pairs = field.message_type.fields_by_name
        if not isinstance(value, Mapping):
            wrong_type(value, path, "a mapping")
        for key, item in value.items():
            known = _scalar(pairs["key"], key, f"a key of {path}")
            getattr(message, field.name)[known] = _scalar(pairs["value"], item, f"{path}[{known}]")
    elif field.is_repeated:
        _add(getattr(message, field.name), field, value, path)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _add(listed: MutableSequence[Any], field: FieldDescriptor, value: Any, path: str) -> None:
    if field.type in _BITS:
        add_integers(listed, value, path, _BITS[field.type])
    else:
        found = enumerate(items(value, path))
        listed.extend([_scalar(field, item, f"{path}[{i}]") for i, item in found])


def _scalar(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.type in _BITS:
        return integer(value, path, _BITS[field.type])
    return _SCALARS[field.type](value, path)


def integer(value: Any, path: str, bits: int = 32) -> int:
    """An unsigned one of so many bits."""
    if isinstance(value, bool):
        wrong_type(value, path, "an integer")
    try:
        found = operator.index(value)
    except TypeError:
        wrong_type(value, path, "an integer")
    if not 0 <= found < 1 << bits:
        raise ValueError(f"{path} must be in [0, 2**{bits})")
    return found


def add_integers(listed: MutableSequence[Any], value: Any, path: str, bits: int = 32) -> None:
    """Puts them into a field: of any iterable, so of an array too."""
    found = items(value, path)
    try:
        # The fastest way to look at 100,000 ids, but it does not say which of them is wrong.
        listed.extend(found)
    except (TypeError, ValueError):
        del listed[:]
        listed.extend([integer(item, f"{path}[{i}]", bits) for i, item in enumerate(found)])


def real(value: Any, path: str) -> float:
    """A real one; infinite and NaN are for the daemon to judge."""
    kind = type(value)
    if isinstance(value, bool) or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        wrong_type(value, path, "a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{path} is too large for a float") from None
    except TypeError:  # an array of several
        wrong_type(value, path, "a number")


def seconds(value: Any, path: str) -> float | None:
    """A time from now; None without end. One that is past has passed already."""
    found = math.inf if value is None else real(value, path)
    if math.isnan(found):
        raise ValueError(f"{path} must not be NaN")
    # gRPC counts nanoseconds in 64 bits, and takes what does not fit for a time that is past.
    return found if found < _ENDLESS_S else None


def flag(value: Any, path: str) -> bool:
    """Nothing that is only as good as true."""
    return given(value, bool, path, "True or False")


def text(value: Any, path: str) -> str:
    """Whatever has a place in UTF-8."""
    found = given(value, str, path, "a string")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        problem = f"{path} has half a surrogate pair at {error.start}, which UTF-8 cannot carry"
        raise UnicodeError(problem) from None  # a ValueError, which the command tells from others
    return found


def items(value: Any, path: str, wanted: str = "a list") -> Sequence[Any]:
    """The items of a list or of anything else that can be iterated."""
    if isinstance(value, _NO_LISTS) or not hasattr(type(value), "__iter__"):
        wrong_type(value, path, wanted)
    try:
        return value if isinstance(value, Sequence) else list(value)
    except TypeError:  # an array without a dimension
        wrong_type(value, path, wanted)


def json_object(value: Any, path: str) -> str:
    """A mapping of JSON values, as JSON."""
    if not isinstance(value, Mapping):
        wrong_type(value, path, "a mapping")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path} holds what JSON cannot say") from None


def given(value: Any, kind: type[_T], path: str, wanted: str) -> _T:
    """The value, of this kind, or a TypeError that says what is wanted."""
    if not isinstance(value, kind):
        wrong_type(value, path, wanted)
    return value


def wrong_type(value: Any, path: str, wanted: str) -> NoReturn:
    """Raises TypeError for a value of another type than is wanted."""
    found = "None" if value is None else type(value).__name__
    raise TypeError(f"{path} must be {wanted}, not {found}")


_BITS = {FieldDescriptor.TYPE_UINT32: 32, FieldDescriptor.TYPE_UINT64: 64}
_SCALARS: dict[int, Callable[[Any, str], Any]] = {
    FieldDescriptor.TYPE_FLOAT: real,
    FieldDescriptor.TYPE_BOOL: flag,
    FieldDescriptor.TYPE_STRING: text,
}
