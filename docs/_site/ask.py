"""Asks the site's own search: `python docs/_site/ask.py QUESTION…`, a line of JSON for each.

The index is what mkdocs wrote for the page's search, with its own weights; what answers is lunr's
Python twin, where a browser has lunr itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lunr import lunr

INDEX = Path(__file__).resolve().parents[2] / "build/docs/search/search_index.json"


def main() -> None:
    """The addresses found, the best first."""
    found = json.loads(INDEX.read_text())
    fields = [
        {"field_name": name, "boost": how["boost"]}
        for name, how in found["config"]["fields"].items()
    ]
    documents = [{"tags": "", **document} for document in found["docs"]]
    index = lunr(ref="location", fields=fields, documents=documents, languages="en")
    for question in sys.argv[1:]:
        print(json.dumps([match["ref"] for match in index.search(question.replace("-", " "))]))


if __name__ == "__main__":
    main()
