"""A reply that is data: a value of a type, whatever the model.

    python examples/structured.py "The Danube rises in the Black Forest and is 2,850 km long."

What ends well is a document of the type's schema. How true it is, the model knows. Needs the extra
`sapwood[typed]`; without it `generate(..., json_schema=...)` takes a schema.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field

from sapwood import Client, IncompleteReply, Message


@dataclass
class River:
    name: Annotated[str, Field(max_length=40)]
    length_km: Annotated[int, Field(ge=1, le=7000)]
    sea: Literal["Atlantic", "Baltic", "Black Sea", "Mediterranean", "North Sea"]


def main() -> None:
    text = " ".join(sys.argv[1:]) or "The Danube rises in the Black Forest and is 2,850 km long."
    with Client() as client:
        try:
            river = client.parse([Message("user", text)], River, temperature=0)
        except IncompleteReply as cut:
            sys.exit(f"cut off: {cut.reply.text}")
    for field in fields(river):
        print(f"{field.name}: {getattr(river, field.name)}")


if __name__ == "__main__":
    main()
