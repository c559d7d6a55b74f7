"""A reply that is data: JSON of a schema, read as such.

    python examples/structured.py "The Danube rises in the Black Forest and is 2,850 km long."

Whatever the model, what ends well is a document of the schema. How true it is, the model knows.
"""

from __future__ import annotations

import json
import sys

from sapwood import Client, FinishReason, Message

RIVER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "length_km": {"type": "integer", "minimum": 1, "maximum": 7000},
        "sea": {"enum": ["Atlantic", "Baltic", "Black Sea", "Mediterranean", "North Sea"]},
    },
    "required": ["name", "length_km", "sea"],
    "additionalProperties": False,
}


def main() -> None:
    text = " ".join(sys.argv[1:]) or "The Danube rises in the Black Forest and is 2,850 km long."
    with Client() as client:
        stream = client.generate([Message("user", text)], json_schema=RIVER, temperature=0)
        reply = stream.collect()
    if reply.finish.reason is not FinishReason.STOP:
        sys.exit(f"cut off: {reply.text}")
    for key, value in json.loads(reply.text).items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
