"""A daemon behind real SMG, with a model that says what it is asked to say.

`python -m tests.daemon.gateway.serve_scripted FOLDER [ADDRESS [CHECKPOINT]]`: FOLDER has `c.toml`,
`ready.json` appears; while it has `held` the reply to `say pause` creeps on behind its list.
Tokenizer and template are a reference checkpoint's; the reply is the script that the newest turn
names (`say hello`), written with the model's own control tokens.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import anyio

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.daemon import entry
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.log import log_to_stderr
from sapwood.daemon.process.run import serve
from sapwood.daemon.settings.config import Config, load_config
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.sampling import SamplingDefaults
from tests.daemon.fakes import BUDGET, FACTS, FakeDevice

CHECKPOINT = Path(__file__).parents[2] / "fixtures/ckpt/e2b-tiny"
VOCABULARY = 1024
STEP_S, CREEPS_S, NODES_MAX = 0.002, 0.1, 1000  # CREEPS_S: of a token
CALL = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>'
LIST = "# Rivers\n\n- **wide**\n- slow\n\n"
SCRIPTS = {
    "hello": "Hello there.<turn|>",
    "count": "one two three four five<turn|>",
    "think": "<|channel>thought\nhmm, well\n<channel|>So it is.<turn|>",
    "call": f"{CALL}<turn|>",
    "thoughtful": f"<|channel>thought\nI must ask.\n<channel|>{CALL}<turn|>",
    "twice": f"{CALL}{CALL.replace('Paris', 'Rome')}<turn|>",
    "forever": "la " * 2000,
    "pause": f"{LIST}They flow: {'la ' * 2000}",
}
OTHERWISE = "Yes.<turn|>"


class ScriptedDevice(FakeDevice):
    """Says the script of the last turn before the model's own."""

    def __init__(self, tokenizer: Tokenizer, held: Path) -> None:
        super().__init__()
        self._held = held
        self._tokenizer = tokenizer
        self._scripts = {name: self._ids(text) for name, text in SCRIPTS.items()}
        self._otherwise = self._ids(OTHERWISE)
        (self._answered,) = self._ids("<tool_response|>")
        self._pause_at = len(self._ids(f"{LIST}They flow: la la la "))
        self._opening = self._ids("<|turn>model\n")
        self.next_token = self._said_next

    def wait(self, plan: StepPlan) -> StepResult:
        threading.Event().wait(STEP_S)
        return super().wait(plan)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode_text(text)[1:]

    def _said_next(self, tokens: Sequence[int]) -> int:
        turn = self._opening[0]
        begins = len(tokens) - 1 - list(reversed(tokens)).index(turn)
        asked = list(tokens[:begins])
        asked = asked[len(asked) - 1 - asked[::-1].index(turn) :] if turn in asked else asked
        named = re.findall(r"say (\w+)", self._tokenizer.decode(asked))
        script = self._scripts.get(named[-1], self._otherwise) if named else self._otherwise
        start = begins + len(self._opening)
        if self._answered in tokens[start:]:  # a tool has, and the model's turn goes on
            start = len(tokens) - list(reversed(tokens)).index(self._answered)
            script = self._otherwise
        said = len(tokens) - start
        if script is self._scripts["pause"] and said > self._pause_at and self._held.exists():
            threading.Event().wait(CREEPS_S)
        return script[min(said, len(script) - 1)]


def load(config: Config, held: Path, checkpoint: Path) -> Loaded:
    entry.all_imported()
    tokenizer = load_tokenizer(ModelDirectory(checkpoint), VOCABULARY)
    facts = replace(
        FACTS,
        vocabulary=VOCABULARY,
        eos_token_ids=tokenizer.eos_token_ids,
        control_tokens=tokenizer.control_tokens,
    )
    tree = Tree(facts.window_tokens, NODES_MAX)
    core = Core(
        facts, config.limits, tree, Ledger(BUDGET, facts.weights_bytes), tokenizer.token_bytes
    )
    card = ModelCard(
        name="scripted",
        family="fake",
        fingerprint=b"\x03",
        facts=facts,
        defaults=SamplingDefaults(),
        tokenizer=tokenizer,
        drafter="fake-drafter",
        folder=checkpoint,
    )
    device = ScriptedDevice(tokenizer, held)
    return Loaded(card, core, device, tree.describe, outline_tree=tree.outline)


def main(folder: str, address: str = "127.0.0.1:0", checkpoint: str = str(CHECKPOINT)) -> NoReturn:
    entry.begin(serves=True)
    log_to_stderr()
    config = load_config(
        {
            "config": f"{folder}/c.toml",
            "listen": [address],
            "metrics": "127.0.0.1:0",
            "ready_file": f"{folder}/ready.json",
        }
    )
    held = Path(folder, "held")
    entry.leave(anyio.run(serve, config, lambda: load(config, held, Path(checkpoint))))


if __name__ == "__main__":
    main(*sys.argv[1:])
