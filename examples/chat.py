"""A chat that streams: text is shown as it comes, and the whole history goes along each time.

    python examples/chat.py

A line is a turn, the end of input ends the chat. The daemon finds what it knows of the history in
its prefix tree, so a turn costs little more than what is new in it.
"""

from __future__ import annotations

import sys

from sapwood import Client, Delta, Message, Prefill


def main() -> None:
    history = [Message("system", "You answer in short and plain sentences.")]
    with Client() as client:
        for line in sys.stdin:
            history.append(Message("user", line.strip()))
            with client.generate(history, max_tokens=200, temperature=0) as stream:
                known = 0
                for event in stream:
                    match event:
                        case Prefill():
                            known = event.cached_tokens
                        case Delta():
                            print(event.text, end="", flush=True)
                reply = stream.collect()
            print(f"\n({known} of {reply.prefill.prompt_tokens} prompt tokens were known)")
            history.append(reply.message())


if __name__ == "__main__":
    main()
