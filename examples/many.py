"""Many questions at once over one shared beginning, which is computed once.

    python examples/many.py

All questions are sent together. One of them computes the instructions that all begin with; the
others wait for that, take it from the prefix tree, and are then decoded in the same steps.
"""

from __future__ import annotations

import asyncio

from sapwood import AsyncClient, Message, Reply

INSTRUCTIONS = """\
You are a guide in a small museum and talk to visitors of all ages. Answer in plain English, in \
two or three short sentences. Begin with the answer and explain it afterwards. If you do not know \
something, say so in one sentence and do not invent names, dates or numbers. Be kind to \
everybody, however simple a question may be."""

QUESTIONS = (
    "What is a river?",
    "What is a volcano?",
    "What is bread?",
    "What is a bicycle?",
    "What is the moon?",
)


async def ask(client: AsyncClient, question: str) -> Reply:
    messages = [Message("system", INSTRUCTIONS), Message("user", question)]
    return await client.generate(messages, max_tokens=80, temperature=0).collect()


async def main() -> None:
    async with AsyncClient() as client:
        replies = await asyncio.gather(*(ask(client, question) for question in QUESTIONS))
    for question, reply in zip(QUESTIONS, replies, strict=True):
        usage = reply.finish.usage
        print(f"{question} {reply.text}")
        print(f"    {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were cached")
    computed = sum(r.finish.usage.prompt_tokens - r.finish.usage.cached_tokens for r in replies)
    print(f"{computed} of {sum(r.finish.usage.prompt_tokens for r in replies)} were computed")


if __name__ == "__main__":
    asyncio.run(main())
