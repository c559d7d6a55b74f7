"""Golden transcripts: what the core plans and says, step by step, as text to review like code.

A file under scenarios/ is a list of blocks: commands, a line `----`, what they print.
After a change that is meant, rewrite them and read the difference:

    python -m tests.scheduler.scenario --rewrite
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from sapwood.scheduler.events import Delta, Effect, Failed, Finished, Progress
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from tests.scheduler.house import ROOMY, House, Stream, prompt

SCENARIOS = Path(__file__).parent / "scenarios"
DIVIDER = "----"


def files() -> list[Path]:
    return sorted(SCENARIOS.glob("*.txt"))


def replay(text: str) -> str:
    """`text` with every block's output as it is now."""
    play = Play()
    blocks = []
    for block in text.strip().split("\n\n"):
        commands = block.split(f"\n{DIVIDER}")[0]
        output: list[str] = []
        for line in commands.splitlines():
            if line and not line.startswith("#"):
                output += play.command(line)
        blocks.append("\n".join([commands, DIVIDER, *output] if output else [commands]))
    play.house.close()
    return "\n\n".join(blocks) + "\n"


class Play:
    """One scenario on its own house; clients have names."""

    def __init__(self) -> None:
        self.house = House()
        self.names: dict[int, str] = {}

    def command(self, line: str) -> list[str]:
        verb, *words = shlex.split(line)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        names = [word for word in words if "=" not in word]
        return list(getattr(self, f"do_{verb}")(*names, **options))

    def do_house(self, **options: str) -> list[str]:
        """house slots=2 prefill=16 share=8 overtaken=2 budget=3000 quality=1"""
        limits = Limits(
            slots_max=int(options.get("slots", 2)),
            prefill_tokens_max=int(options.get("prefill", 16)),
            share_tokens_min=int(options.get("share", 8)),
            overtaken_max=int(options.get("overtaken", 8)),
            queued_max=int(options.get("queued", 256)),
            draft_depth_max=8,
        )
        budget, quality = int(options.get("budget", ROOMY)), float(options.get("quality", 1))
        self.house = House(limits=limits, budget_bytes=budget, quality=quality)
        return []

    def do_submit(self, name: str, **options: str) -> list[str]:
        """submit a prompt=32@1+8@5 max=4 depth=2 stop=ab: 32 tokens of seed 1, then 8 of seed 5"""
        tokens: tuple[int, ...] = ()
        for part in options.pop("prompt").split("+"):
            count, _, seed = part.partition("@")
            tokens += prompt(int(count), int(seed or 0))
        given: dict[str, object] = {"depth": int(options.get("depth", 0)), "ignore_eos": True}
        if "stop" in options:
            given["stop"] = (options["stop"],)
        stream = self.house.submit(tokens, int(options.get("max", 4)), **given)
        self.names[stream.request.id] = name
        return self._told(self.house.deliver())

    def do_follow(self, name: str, earlier: str, **options: str) -> list[str]:
        """follow c a max=4: the second turn of a, with 4 more tokens"""
        first = self._stream(earlier)
        tokens = first.request.prompt + tuple(first.tokens) + prompt(4, 9)
        stream = self.house.submit(tokens, int(options.get("max", 4)), depth=0, ignore_eos=True)
        self.names[stream.request.id] = name
        return []

    def do_cancel(self, name: str) -> list[str]:
        self.house.cancel(self._stream(name))
        return self._told(self.house.deliver())

    def do_step(self, count: str = "1") -> list[str]:
        lines = []
        for _ in range(int(count)):
            plan = self.house.step()
            lines += self._planned(plan) + self._told(self.house.deliver())
        return lines

    def do_run(self) -> list[str]:
        lines = []
        while self.house.core.has_work:
            lines += self.do_step()
        return lines

    def do_stats(self) -> list[str]:
        stats = self.house.core.stats()
        return [
            f"prompt {stats.prompt_tokens} cached {stats.prefix_cached_tokens}"
            f" recomputed {stats.prefix_recomputed_tokens}"
            f" evictions {dict(stats.tree_evictions)}"
        ]

    def _stream(self, name: str) -> Stream:
        id = next(id for id, known in self.names.items() if known == name)
        return self.house.streams[id]

    def _planned(self, plan: StepPlan | None) -> list[str]:
        if plan is None:
            return ["no plan"]
        parts = [f"capture {c.slot} [{c.start}, {c.end})" for c in plan.captures]
        parts += [f"release {slot}" for slot in plan.releases]
        for a in plan.admits:
            parts.append(f"admit {a.slot} at {a.target}" + f" refers {a.base}" * bool(a.base))
        parts += [f"repoint {r.slot}" for r in plan.repoints]
        parts += [f"seal {s.slot}" for s in plan.seals]
        parts += [f"decode {d.slot} at {d.start} depth {d.depth}" for d in plan.decodes]
        for p in plan.prefills:
            flags = " draws" * p.draws + " unkept" * (not p.capture)
            parts.append(f"prefill {p.slot} [{p.start}, {p.end}){flags}")
        return [f"{plan.number}: " + " | ".join(parts)]

    def _told(self, effects: tuple[Effect, ...]) -> list[str]:
        return [f"   {self.names.get(e.id, 'new')}: {_tell(e)}" for e in effects]


def _tell(effect: Effect) -> str:
    if isinstance(effect, Progress):
        return f"{effect.processed} of {effect.total}, {effect.cached} cached"
    if isinstance(effect, Delta):
        return f"{list(effect.token_ids)} {effect.text!r}"
    if isinstance(effect, Failed):
        return effect.reason.name
    assert isinstance(effect, Finished), f"scenarios have no operators: {effect}"
    return f"{effect.reason} {effect.stop_sequence!r} cached {effect.usage.cached_tokens}"


def main() -> int:
    if sys.argv[1:] != ["--rewrite"]:
        print(__doc__)
        return 2
    for file in files():
        file.write_text(replay(file.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
