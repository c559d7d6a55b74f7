"""Seeds and log-probabilities: the same story twice, another one, and how sure the model was.

    python examples/seeds.py

A seed gives the same tokens at any depth of speculation and in any company. The log-probabilities
are the model's own, before temperature and filters.
"""

from __future__ import annotations

import math

from sapwood import Client, Message, Reply

PROMPT = [Message("user", "Tell me a short story about a fox.")]
TOKENS = 24


def story(client: Client, seed: int, draft_tokens: int | None = None) -> Reply:
    """draft_tokens None: the daemon decides how many tokens each round drafts."""
    return client.generate(
        PROMPT,
        max_tokens=TOKENS,
        temperature=1.0,
        top_p=0.95,
        seed=seed,
        draft_tokens=draft_tokens,
        top_logprobs=3,
    ).collect()


def main() -> None:
    with Client() as client:
        once, again, other = story(client, 7), story(client, 7, draft_tokens=0), story(client, 8)
        print(f"seed 7:         {once.text!r}")
        print(f"without drafts: {again.text!r}")
        print(f"seed 8:         {other.text!r}")
        print(f"same tokens: {once.token_ids == again.token_ids}")
        for token_id, told in list(zip(once.token_ids, once.logprobs, strict=True))[:5]:
            text = client.detokenize([token_id])
            rivals = ", ".join(
                f"{client.detokenize([a.token_id])!r} {math.exp(a.logprob):.0%}"
                for a in told.alternatives
            )
            print(f"{text!r:12} {math.exp(told.logprob):4.0%}   of {rivals}")


if __name__ == "__main__":
    main()
