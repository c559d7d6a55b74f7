"""What can go wrong, and how a reply is ended early: refusals, deadlines, cancelling.

    python examples/errors.py

Every error of an RPC is a SapwoodError: `reason` is the name in the contract's table, `fields` says
what is wrong with which field, `retry_after_s` is there where it makes sense to come again. What
was refused with it before the first event is asked for again by the client itself: `timeout` is how
patient it is.
"""

from __future__ import annotations

from sapwood import (
    Cancelled,
    Client,
    DeadlineExceeded,
    Delta,
    InvalidArgument,
    Message,
    SapwoodError,
)

ENDLESS = [Message("user", "Tell me a long story about a little boat.")]


def ask(client: Client, question: str) -> str:
    """A full queue, and a daemon that loads, are waited for up to the timeout."""
    try:
        return client.generate([Message("user", question)], temperature=0, timeout=60).text()
    except SapwoodError as error:
        if error.retry_after_s is not None:
            print(f"not within a minute: {error.reason}")
        raise


def main() -> None:
    with Client() as client:
        print(ask(client, "What is a river?"))
        try:
            client.generate(ENDLESS, max_tokens=0).collect()
        except InvalidArgument as error:
            print(f"refused: {error.reason}, {dict(error.fields)}")
        try:
            client.generate(ENDLESS, max_tokens=4000, ignore_eos=True, timeout=0.3).collect()
        except DeadlineExceeded:
            print("the deadline passed: the daemon has stopped, what it computed is kept")
        stream = client.generate(ENDLESS, max_tokens=4000, ignore_eos=True)
        try:
            for event in stream:
                if isinstance(event, Delta):
                    stream.cancel()  # leaving a `with` block around the stream does it as well
        except Cancelled:
            print("cancelled")


if __name__ == "__main__":
    main()
