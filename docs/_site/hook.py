"""What mkdocs needs to know of this repository, whose pages link to files outside of docs/.

- A link that is right in the repository is right on the site. What it leads to outside of docs/ is
  a page below source/: Markdown as it is, any other file as code, a folder as a list of its files.
- A link to what is not there stays as it is, so mkdocs says that it is dead.
- A list may follow a line of text, as everywhere but in Python's Markdown.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
# A line of text, and a list behind it.
_LIST = re.compile(r"^((?![-*] |\d+\. |\s|\||#).+)\n(?=[-*] |\d+\. )", re.MULTILINE)
_SHOWN_BYTES_MAX = 64 << 10  # of a file that is no page
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".ts": "ts", ".rb": "ruby"}
_LANGUAGES |= {".plist": "xml", ".json": "json", ".proto": "protobuf", ".service": "ini"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what that links to."""
    known: set[str] = set()
    for file in list(files.documentation_pages()):
        _add_linked(f"docs/{file.src_uri}", file.content_string, files, config, known)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links as the site has them."""
    here = _path_of(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        if not _exists(target):
            return match[0]
        new = posixpath.relpath(_uri_of(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{new}{match[3]}"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else _LINK.sub(moved, _LIST.sub(r"\1\n\n", part))
        for part in parts
    )


def _add_linked(path: str, text: str, files: Files, config: MkDocsConfig, known: set[str]) -> None:
    for _, link, _ in _LINK.findall(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if target not in known and _exists(target):
            known.add(target)
            _add(target, files, config, known)


def _add(path: str, files: Files, config: MkDocsConfig, known: set[str]) -> None:
    uri, place = _uri_of(path), ROOT / path
    if files.get_file_from_path(uri) is not None:
        return
    if place.is_dir():
        text = "\n".join(_listing(path))
    elif path.endswith(".md"):
        text = place.read_text()
        if path == "CHANGELOG.md":
            text = _UNSEARCHED + text
    else:
        text = _as_code(path)
    files.append(File.generated(config, uri, content=text))
    _add_linked(path if place.is_file() else f"{path}/index.md", text, files, config, known)


def _listing(path: str) -> Iterator[str]:
    """A folder as a page."""
    yield f"# {path}\n"
    for place in sorted((ROOT / path).iterdir()):
        if place.name[0] in "._" or place.name in ("node_modules", "build", "dist"):
            continue
        yield f"- [{_title(place)}]({place.name})"


def _title(place: Path) -> str:
    """A page's own, or else a name."""
    if place.suffix == ".md" and (line := place.read_text().partition("\n")[0]).startswith("# "):
        return line[2:]
    return place.name


def _as_code(path: str) -> str:
    place = ROOT / path
    if place.stat().st_size > _SHOWN_BYTES_MAX:
        return f"# {path}\n\n{place.stat().st_size:,} bytes: see the repository.\n"
    language = _LANGUAGES.get(place.suffix, "text")
    return f"{_UNSEARCHED}# {path}\n\n`````{language}\n{place.read_text()}\n`````\n"


def _exists(path: str) -> bool:
    return not path.startswith("..") and (ROOT / path).exists()


def _uri_of(path: str) -> str:
    """Where a file or folder of the repository is on the site."""
    place = ROOT / path
    if place.is_dir():
        index = f"{path}/README.md" if (place / "README.md").is_file() else f"{path}/index.md"
        return index.removeprefix("docs/") if _below_docs(path) else f"source/{index}"
    if _below_docs(path):
        picture = place.suffix in (".md", ".svg", ".png")
        return path.removeprefix("docs/") + ("" if picture else ".md")
    shown = path.replace("/.", "/").removeprefix(".")  # mkdocs shows nothing that is hidden
    return f"source/{shown}" if path.endswith(".md") else f"source/{shown}.md"


def _path_of(uri: str) -> str:
    """The other way, for what is Markdown in the repository; a folder's list lies in the folder."""
    return uri.removeprefix("source/") if uri.startswith("source/") else f"docs/{uri}"


def _below_docs(path: str) -> bool:
    return path == "docs" or path.startswith("docs/")
