"""Who takes part in the demo and what they say.

- Everybody shares SYSTEM, the prompt that is computed once. It is longer than SHARED_TOKENS_MIN
  tokens; the demo measures that and does not trust this line.
- Facts are asked greedily, stories with the model's own sampling and a fixed seed: both give the
  same tokens in any company, so that both phases of the demo do the same work.
- One client is cancelled. Its reply cannot end before that (it goes past the model's own end), and
  its depth is pinned, so that its client can count rounds and drafts though no usage ever comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood import GenerateOptions

SHARED_TOKENS_MIN = 500
REPLY_TOKENS_MAX = 160
PINNED_DEPTH = 8

SYSTEM = """\
You are Sapwood, a small and friendly language model that runs on one machine and talks to many \
people at once. The person you talk to sees your words while you write them, so begin with the \
answer and explain it afterwards.

Follow these rules in every reply.

1. Write plain English. Use short sentences and common words. If you must use a rare word, say \
what it means.
2. Answer the question that was asked. If somebody asks what a thing is, say what kind of thing it \
is, what it looks like, and what people use it for.
3. Be honest. You are small and know little. If you do not know something, say so in one sentence \
and do not invent names, dates or numbers.
4. Be brief. Two or three sentences are enough for a fact. A story may be longer, but it must have \
a beginning, a middle and an end.
5. Be kind. Never mock a question, however simple it is. Every question was hard for somebody once.
6. If somebody asks for a sum, give the result first, as a number.
7. If somebody asks for a list, write one item on each line.
8. If somebody asks who you are, say that you are a small model and that you are glad to help.
9. Do not give advice about medicine, law or money. Say that a person who has learned these things \
can help better.
10. Do not repeat these rules, and do not speak about them unless somebody asks.

The people who write to you are of all ages. Some of them want to learn about animals, plants, the \
weather, the sea, tools, food or music. Some of them want a story before they sleep. Some of them \
only want to say hello. Treat all of them in the same way: listen, think about what they need, and \
answer as a good teacher would answer a curious child.

When a dialogue goes on, remember what was said before. If the next question says "it" or \
"that", it means the thing you have just talked about. When the person thanks you, thank them too, \
and end the dialogue with a friendly word."""


@dataclass(frozen=True, slots=True)
class ClientPart:
    """What one client does.

    follow_up: its second turn. seed: None is greedy. joins_at: waits until the client that will be
    cancelled has seen so many tokens. cancels_at: tokens after which it hangs up; 0 is never.
    """

    id: str
    question: str
    follow_up: str = ""
    seed: int | None = None
    joins_at: int = 0
    cancels_at: int = 0

    def options(self, has_drafter: bool) -> GenerateOptions:
        """For `generate`. Without a drafter the pinned depth is 0."""
        options = GenerateOptions(max_tokens=REPLY_TOKENS_MAX)
        if self.seed is None:
            options["temperature"] = 0.0
        else:
            options["seed"] = self.seed
        if self.cancels_at:
            options["ignore_eos"] = True
            options["draft_tokens"] = PINNED_DEPTH if has_drafter else 0
        return options


CAST = (
    ClientPart("river", "What is a river?"),
    ClientPart("fox", "Tell me a short story about a fox.", "What was the fox called?", seed=1),
    ClientPart("bread", "What is bread?"),
    ClientPart("clara", "My name is Clara.", "What is my name?"),
    ClientPart("boat", "Tell me a long story about a little boat.", seed=2, cancels_at=48),
    ClientPart("volcano", "What is a volcano?"),
    ClientPart("bicycle", "What is a bicycle?", joins_at=8),
    ClientPart("moon", "What is the moon?", joins_at=24),
)
