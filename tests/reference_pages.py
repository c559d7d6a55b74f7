"""Pages that are read off the code: docs/limits.md and docs/wire.md.

- Limits are those of scheduler/limits.py, with its comments; the wire is that of proto/, with its
  own. So a comment there is a line that users read.
- `python -m tests.reference_pages --rewrite` writes both; a test holds them.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from sapwood.scheduler.limits import Limits
from tests.test_rooms import ROOT

_LIMITS = ROOT / "scheduler/limits.py"
_PROTOS = ROOT / "proto"
_LIMITS_HEAD = """\
# Limits

Every bound of a daemon: of a queue, list, string, size or time. `[limits]` in the
[file of settings](settings.md) may set any of them, to a value of its type. Units come last in a
name, and a maximum is the largest value that is allowed. What is over a limit is refused with
[a reason](errors.md), never cut.
"""
_WIRE_HEAD = """\
# The wire

The contract `sapwood.v1`, read off [proto/sapwood/v1](../proto/sapwood/v1): gRPC, in any language
that it has. From Python there is [a client](python.md), [in TypeScript](typescript.md) a small one
to copy. What clients can rely on from version to version: [compatibility](compatibility.md).
"""
_SCALARS = {
    kind: name.removeprefix("TYPE_").lower()
    for name, kind in descriptor_pb2.FieldDescriptorProto.Type.items()
}
# Numbers of fields in a descriptor, of which paths to comments are made (descriptor.proto).
_SERVICE, _MESSAGE, _ENUM, _SYNTAX = 6, 4, 5, 12
_METHOD, _FIELD, _NESTED, _NESTED_ENUM, _ONEOF, _VALUE = 2, 2, 3, 4, 8, 2


def limits_page() -> str:
    """docs/limits.md."""
    return "\n".join([_LIMITS_HEAD, *_limits(_LIMITS.read_text()), ""])


def _limits(source: str) -> Iterator[str]:
    """A section begins with a comment behind an empty line; any other comment is the field's."""
    lines = source.splitlines()
    (made,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    comments = {
        token.start[0]: token.string.removeprefix("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    defaults = Limits()
    for node in made.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        assert node.end_lineno is not None
        above = node.lineno - 1
        alone = lines[above - 1].strip().startswith("#")
        begins = alone and not lines[above - 2].strip()
        if begins:
            yield from ("", f"## {comments[above].removesuffix('.')}", "")
            yield from ("| limit | default | |", "| --- | --- | --- |")
        said = [comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
        if not said and alone and not begins:
            said = [comments[above]]
        name = node.target.id
        yield f"| `{name}` | {_number(getattr(defaults, name))} | {_cell(' '.join(said))} |"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def wire_page() -> str:
    """docs/wire.md."""
    files = _described()
    parts = [_WIRE_HEAD]
    for file in files:
        comments = _comments(file)
        parts.append(f"## {Path(file.name).name}\n")
        parts.append(_prose(comments((_SYNTAX,))))
        for index, service in enumerate(file.service):
            parts.extend(_service(service, (_SERVICE, index), comments))
        for index, message in enumerate(file.message_type):
            parts.extend(_message(message, (_MESSAGE, index), comments, ""))
        for index, enum in enumerate(file.enum_type):
            parts.extend(_enum(enum, (_ENUM, index), comments, ""))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def _described() -> Sequence[descriptor_pb2.FileDescriptorProto]:
    """What the compiler makes of the contract, comments included, what is called first in front."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        paths = sorted(str(path) for path in _PROTOS.rglob("*.proto"))
        compiler = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={_PROTOS}"]
        flags = ["--include_source_info", f"--descriptor_set_out={out}"]
        subprocess.run([*compiler, *flags, *paths], check=True)
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    order = ("generation", "model", "session", "cache", "prompt")
    return sorted(found.file, key=lambda file: order.index(Path(file.name).stem))


Comments = Callable[[tuple[int, ...]], str]


def _comments(file: descriptor_pb2.FileDescriptorProto) -> Comments:
    by_path = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
    return lambda path: by_path.get(path, "")


def _service(
    service: descriptor_pb2.ServiceDescriptorProto, path: tuple[int, ...], comments: Comments
) -> Iterator[str]:
    yield from (f"\n### {service.name}\n", _prose(comments(path)))
    yield from ("| call | takes | gives | |", "| --- | --- | --- | --- |")
    for index, method in enumerate(service.method):
        gives = f"{'stream of ' if method.server_streaming else ''}{_link(method.output_type)}"
        said = _cell(comments((*path, _METHOD, index)))
        yield f"| `{method.name}` | {_link(method.input_type)} | {gives} | {said} |"


def _message(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], comments: Comments, within: str
) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{within}{message.name}"
    yield from (f"\n### {name}\n", _prose(comments(path)))
    for index, choice in enumerate(message.oneof_decl):
        if said := _cell(comments((*path, _ONEOF, index))):
            yield f"- `{choice.name}`, one field of several: {said}\n"
    if message.field:
        yield from ("| field | type | number | |", "| --- | --- | --- | --- |")
    maps = {f".{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    for index, field in enumerate(message.field):
        said = _cell(comments((*path, _FIELD, index)))
        one_of = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            one_of = f", one of `{message.oneof_decl[field.oneof_index].name}`"
        entry = next((maps[end] for end in maps if field.type_name.endswith(end)), None)
        kind = _type(field) if entry is None else f"map of {' to '.join(map(_type, entry.field))}"
        yield f"| `{field.name}` | {kind}{one_of} | {field.number} | {said} |"
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, (*path, _NESTED, index), comments, f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, (*path, _NESTED_ENUM, index), comments, f"{name}.")


def _enum(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], comments: Comments, within: str
) -> Iterator[str]:
    yield from (f"\n### {within}{enum.name}\n", _prose(comments(path)))
    yield from ("| value | number | |", "| --- | --- | --- |")
    for index, value in enumerate(enum.value):
        said = _cell(comments((*path, _VALUE, index)))
        yield f"| `{value.name}` | {value.number} | {said} |"


def _type(field: descriptor_pb2.FieldDescriptorProto) -> str:
    kind = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    if field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    return f"{kind}, optional" if field.proto3_optional else kind


def _link(name: str) -> str:
    short = name.removeprefix(".sapwood.v1.")
    anchor = short.lower().replace(".", "")
    return f"`{short.lstrip('.')}`" if short.startswith(".") else f"[{short}](#{anchor})"


def _prose(comment: str) -> str:
    """Paragraphs; what is indented is a table of the contract's own."""
    made = []
    for paragraph in comment.rstrip().split("\n\n"):
        lines = [line.removeprefix(" ") for line in paragraph.splitlines()]
        if lines and all(line.startswith("  ") for line in lines if line.strip()):
            lines = ["```", *lines, "```"]
        made.append("\n".join(lines))
    return "\n\n".join(made) + "\n"


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|").replace("<", "&lt;")


PAGES = {"limits.md": limits_page, "wire.md": wire_page}


def main(arguments: Iterable[str]) -> None:
    """Print or, with --rewrite, write."""
    for name, page in PAGES.items():
        if "--rewrite" in arguments:
            (ROOT / "docs" / name).write_text(page())
        else:
            print(page(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
