"""One question, one answer, and what it took.

    sapwood serve &
    python examples/ask.py "What is a river?"

Like all examples it talks to the daemon at $SAPWOOD_ADDRESS, else to the one at the usual places.
"""

from __future__ import annotations

import sys

from sapwood import Client, Message


def main() -> None:
    question = " ".join(sys.argv[1:]) or "What is a river?"
    with Client() as client:
        reply = client.generate([Message("user", question)], temperature=0).collect()
    usage = reply.finish.usage
    print(reply.text)
    print(
        f"{usage.completion_tokens} tokens, all but the first in {usage.decode_steps} forwards: "
        f"{usage.accepted_tokens} of {usage.draft_tokens} drafts were accepted"
    )


if __name__ == "__main__":
    main()
