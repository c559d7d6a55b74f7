"""What the demo found out: plain values, each measured, and the JSON that `--json` writes.

- A client's figures are what it saw itself, both turns summed; its time to the first token is that
  of its first turn. The cancelled client's rounds and drafts are those that its messages prove.
- `metrics_agree` covers both phases: together, and one by one, where everything that finished is
  compared exactly.
- A claim is a promise of the daemon that this run could have broken. A broken one fails the demo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sapwood.daemon.demo.dialogue import Dialogue
from sapwood.daemon.demo.phase import Phase
from sapwood.daemon.demo.scrape import Check
from sapwood.daemon.demo.script import SHARED_TOKENS_MIN


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """What one client counted, both turns summed. ttft_s, in seconds, is of its first turn."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int
    rounds: int
    ttft_s: float
    finish: str


@dataclass(frozen=True, slots=True)
class TreeFigures:
    """The tree at the end of a phase. bytes: of all tiers; splits: since its daemon started."""

    nodes: int
    bytes: int
    splits: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The content of the JSON file, field by field."""

    clients: tuple[ClientFigures, ...]
    tokens_per_s_together: float
    tokens_per_s_one_by_one: float
    blas: str
    tree: TreeFigures
    metrics_agree: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise, worded with what was measured, and whether it was kept."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What was found, and the phases that it was found in, for the tables."""

    figures: Figures
    claims: tuple[Claim, ...]
    together: Phase
    one_by_one: Phase

    @property
    def checks(self) -> tuple[Check, ...]:
        """Of both phases, `together` first."""
        return self.together.checks + self.one_by_one.checks

    @property
    def same_replies(self) -> int:
        """Clients that read the same tokens in both phases, as far as both read them."""
        pairs = zip(self.together.dialogues, self.one_by_one.dialogues, strict=True)
        return sum(_same(left, right) for left, right in pairs)

    def as_json(self) -> dict[str, object]:
        """The figures alone, as json.dumps takes them."""
        return asdict(self.figures)


def demo_report(together: Phase, one_by_one: Phase, blas: str) -> DemoReport:
    """From two phases that were played to their end. blas: what both daemons computed with."""
    agree = all(check.agrees for check in together.checks + one_by_one.checks)
    figures = Figures(
        tuple(client_figures(dialogue) for dialogue in together.dialogues),
        together.tokens_per_s,
        one_by_one.tokens_per_s,
        blas,
        tree_figures(together),
        agree,
    )
    return DemoReport(figures, claims(together, agree), together, one_by_one)


def client_figures(dialogue: Dialogue) -> ClientFigures:
    """Of a dialogue that ended. Every one has at least one token: that is what ends it."""
    counts, first = dialogue.counts, dialogue.turns[0]
    assert first.first_token is not None, dialogue.part.id
    return ClientFigures(
        dialogue.part.id,
        **asdict(counts),
        ttft_s=first.first_token - first.asked,
        finish=dialogue.turns[-1].outcome,
    )


def tree_figures(phase: Phase) -> TreeFigures:
    """Bytes are those of all nodes, tiers and kinds of layer."""
    stored = sum(sum(node.stored.values()) for node in phase.nodes)
    return TreeFigures(len(phase.nodes), stored, phase.splits)


def claims(together: Phase, metrics_agree: bool) -> tuple[Claim, ...]:
    """Every claim, in the order in which it is shown. metrics_agree: in both phases."""
    dialogues = together.dialogues
    shared = shared_tokens([c.prompts.first for c in dialogues])
    told = [c.turns[0].cached_tokens for c in dialogues]  # over HTTP at a reply's end alone
    firsts = [cached for cached in told if cached is not None]
    late = [c for c in dialogues if c.part.joins_at]
    second = [c for c in dialogues if c.part.follow_up]
    reply = "" if any(c.over_http for c in second) else " and reply"
    return (
        Claim(
            f"the prompts share {shared} tokens, computed once: "
            f"{sum(cached >= SHARED_TOKENS_MIN for cached in firsts)} of {len(firsts)} found "
            f"at least {SHARED_TOKENS_MIN} of them cached",
            shared >= SHARED_TOKENS_MIN
            and sum(cached < SHARED_TOKENS_MIN for cached in firsts) <= 1,
        ),
        Claim(
            f"{len(late)} clients came in while {' and '.join(str(c.company) for c in late)} "
            "others decoded",
            all(c.company > 0 for c in late),
        ),
        Claim(
            f"{len(second)} second turns found first prompt{reply} in the cache",
            all(map(_continued, second)),
        ),
        Claim("every usage is what its stream carried", all(map(_usage_is_true, dialogues))),
        Claim("the daemon's counters are the clients' sums", metrics_agree),
    )


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix."""
    columns = zip(*prompts, strict=False)
    return next(
        (place for place, ids in enumerate(columns) if len(set(ids)) > 1), min(map(len, prompts))
    )


def _continued(dialogue: Dialogue) -> bool:
    """All but the reply's last token, which no forward has seen, and one to evaluate anew.

    Of text that is encoded again only the prompt before it is sure to be the same tokens.
    """
    first, second = dialogue.turns
    if dialogue.over_http:
        return (second.cached_tokens or 0) >= len(first.prompt_ids) - 1
    return (second.cached_tokens or 0) >= len(first.prompt_ids) + len(first.token_ids) - 2


def _usage_is_true(dialogue: Dialogue) -> bool:
    return all(
        (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        == (len(turn.prompt_ids), turn.cached_tokens, len(turn.token_ids))
        for turn in dialogue.turns
        if turn.finish is not None and (usage := turn.finish.usage)
    )


def _same(left: Dialogue, right: Dialogue) -> bool:
    """A cancelled reply ends wherever the cancel met it: what both clients saw is compared.

    Over HTTP in letters: nobody tells of ids.
    """
    for one, other in zip(left.turns, right.turns, strict=True):
        if left.over_http:
            one_text, other_text = sorted((one.text, other.text), key=len)
            whole = one.finish is None or one.text == other.text
            if not whole or not other_text.startswith(one_text):
                return False
            continue
        seen = min(len(one.token_ids), len(other.token_ids))
        whole = one.finish is None or len(one.token_ids) == len(other.token_ids)
        if not whole or one.token_ids[:seen] != other.token_ids[:seen]:
            return False
    return True
