"""One decode step of one row against mlx-lm's own single-token step, on the same loaded model.

- In this process: no daemon, no client. Context 512, argmax, one host sync and the token read, on
  both sides; each continues its own text, token by token.
- Ours is what a step runs per row: the packed layout, room in the caches, the forward, the logits,
  the commit. The round on top adds what serves samplers and drafts, through the runner.
- Steps alternate one by one; a run's value is its median step.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import mlx.core as mx

from bench.measure import Figure, Side, alternated, at_most
from bench.peer import MlxLm
from bench.setup import Setup
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.model.device import attention_kernels
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair
from sapwood.model.runner import Runner
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling

CONTEXT_TOKENS, STEPS, QUICK_STEPS, WARM_STEPS = 512, 64, 16, 4

Step = Callable[[], object]


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_target()
    values: dict[str, list[float]] = {"forward": [], "round": [], "mlx-lm": []}
    for run in range(setup.runs):
        found = _run(pair, setup)
        for name, seconds in found.items():
            values[name].append(seconds)
        shown = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in found.items())
        setup.say(f"run {run + 1}: {shown}")
    sides = {name: Side(name, "s", tuple(found)) for name, found in values.items()}
    title = "One row, context 512: {} ÷ mlx-lm's own step"
    return [
        Figure(
            "step/forward", title.format("our packed step"),
            sides["forward"], sides["mlx-lm"], at_most(1.15),
        ),
        Figure("step/round", title.format("a whole round"), sides["round"], sides["mlx-lm"]),
    ]  # fmt: skip


def _run(pair: Pair, setup: Setup) -> dict[str, float]:
    """Median seconds of a step of each side, from fresh caches."""
    prompt = setup.prompt(CONTEXT_TOKENS)
    target = PackedGemma4(pair.target, pair.target_config.placeholders, pair.kernels)
    steps = {
        "forward": _packed(target, prompt),
        "round": _round(pair, prompt),
        "mlx-lm": MlxLm(pair.target, prompt).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    for step in range(WARM_STEPS + (QUICK_STEPS if setup.quick else STEPS)):
        for name, run in alternated(list(steps.items()), step):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[WARM_STEPS:]) for name, found in seconds.items()}


def _packed(target: PackedGemma4, prompt: list[int]) -> Step:
    """Our forward over caches of its own, as the runner calls it, without runner and sampler."""
    caches = LiveCaches(
        target.shapes,
        target.text.window_size,
        Limits().draft_depth_max + 1,
        mx.float32,
        kernels=attention_kernels(mx.float32),
    )
    caches.restore(0, (), 0)

    def forward(batch: Batch, tokens: mx.array) -> mx.array:
        caches.prepare(batch)
        hidden = target.forward(tokens, batch, caches).hidden
        drawn = mx.argmax(target.logits(hidden), axis=-1)
        mx.eval(drawn, *caches.arrays)
        caches.commit(0, batch.spans[0].end)
        drawn.item()
        return drawn

    token = forward(Batch([], [Span(0, 0, len(prompt))]), mx.array(prompt))

    def step() -> None:
        nonlocal token
        token = forward(Batch([Span(0, caches.offset(0), 1)]), token)

    return step


def _round(pair: Pair, prompt: list[int]) -> Step:
    """A decode row of depth 0 through the runner: submit, wait, verification included."""
    runner = Runner(pair, 1, Limits().draft_depth_max)
    admit = Admit(0, 0, (), Sampling(), len(prompt) + WARM_STEPS + STEPS + 1)
    first = PrefillSlice(0, 0, tuple(prompt), draws=True, capture=False)
    prefilled = runner.wait(runner.submit(StepPlan(1, admits=(admit,), prefills=(first,))))
    token = prefilled.prefilled[0].token
    drawn = 1

    def step() -> None:
        nonlocal token, drawn
        assert token is not None
        row = DecodeRow(0, len(prompt) + drawn - 1, token, 0, drawn)
        (decoded,) = runner.wait(runner.submit(StepPlan(1 + drawn, decodes=(row,)))).decoded
        token, drawn = decoded.tokens[-1], drawn + 1

    return step
