"""A tool call, there and back: the model calls, this program looks up, the model answers.

    python examples/tool_call.py "Do I need a coat in Paris?"

It needs a model whose chat template knows tools. The bundled demo model's does not: the daemon then
refuses the request by the name of the field. Needs the extra `sapwood[typed]`.
"""

from __future__ import annotations

import sys

from sapwood import Client, FailedPrecondition, Message, ToolError, TooManyRounds


def weather(city: str) -> str:
    """The weather of a place now."""
    if not city.istitle():
        raise ToolError("cities are written with a capital")
    print(f"looking up {city}")
    return f"8 degrees and rain in {city}"


def main() -> None:
    question = Message("user", " ".join(sys.argv[1:]) or "Do I need a coat in Paris?")
    with Client() as client:
        try:
            run = client.run_tools([question], [weather], rounds_max=4, temperature=0)
        except FailedPrecondition as error:
            sys.exit(f"this model takes no tools: {', '.join(error.fields) or error}")
        except TooManyRounds as error:
            sys.exit(str(error))
    print(run.reply.text)


if __name__ == "__main__":
    main()
