"""One step with everything in it, before the first client's.

- MLX compiles gathers, scatters and fused functions at their first use, in the step that needs them
  and for everybody in it. And what no kernel can do is a refusal here, and a fault later.
- Runs over a runner of its own with a small window: no slot, seed, tree or count of the daemon's is
  touched, and rings of the model's own length are not needed for it.
- A step of short prompts comes before it, so that something decodes and something is restored, and
  a capture after it.
- Rows that go on come last, with a draft and without: one alone, whose arrays lie otherwise than
  those of several, so that a CPU has kernels of their own for them; one alone that holds half of
  its prompt by reference, as far as that is whole tiles (what strict numerics take more is run by
  strict_check); and both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from math import isfinite

from sapwood.cache.prefix.snapshot import Payload
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.pair import Pair
from sapwood.model.runner import Runner
from sapwood.model.step_values import DeviceFault
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.result import Prefilled, StepResult
from sapwood.scheduler.sampling import CANDIDATES_MAX, Sampling

_PROMPT = tuple(range(8))
_WINDOW_TOKENS = 64
# The two that decode: unseeded, so that drafts are accepted by what both models say of them; over
# the whole vocabulary, and over candidates whose logits were changed.
_DECODING = (
    Sampling(temperature=1.0),
    Sampling(temperature=1.0, top_k=40, repetition_penalty=1.1, logit_bias=((1, 1.0),)),
)
# Those whose prompts end in the same step, the first of them restored.
_READING = (
    Sampling(),
    Sampling(temperature=1.0, top_k=40, min_p=0.01, seeded=True),
    Sampling(temperature=1.0, top_k=CANDIDATES_MAX),
    Sampling(temperature=1.0, top_p=0.9),
)


def warm_up(pair: Pair, depth: int, constraint: object | None = None) -> None:
    """Run it, with rounds of `depth` drafts, 0 or 1. Raises ModelRefused.

    constraint: what the row that is restored is held to.
    """
    config = pair.target_config
    small = replace(config.text, window=min(config.text.window, _WINDOW_TOKENS))
    pair = replace(pair, target_config=replace(config, text=small))
    depth = depth if pair.assistant is not None else 0
    try:
        with closing(Runner(pair, len(_DECODING) + len(_READING), depth)) as runner:
            _run(runner, depth, constraint)
    except (RuntimeError, ValueError, DeviceFault) as error:
        raise ModelRefused(
            f"a step with rows of every kind does not run in {pair.dtype_name} on this device: "
            f"{error}"
        ) from None


def _run(runner: Runner, depth: int, constraint: object | None) -> None:
    first = StepPlan(
        1,
        admits=tuple(_admit(slot, sampling) for slot, sampling in enumerate(_DECODING)),
        prefills=tuple(_slice(slot, 0, capture=not slot) for slot in range(len(_DECODING))),
    )
    begun = runner.wait(runner.submit(first)).prefilled
    stored = begun[0].payload
    assert stored is not None, "a slice was to be captured"
    with closing(stored):
        half = len(_PROMPT) // 2
        base = half - half % runner.caches.kernels.tile_tokens
        result = runner.wait(runner.submit(_mixed(begun, stored, base, depth, constraint)))
        number, ends = _go_on(runner, result, depth)
    told = [row.logprobs for row in result.decoded] + [row.logprobs for row in result.prefilled]
    if not all(isfinite(place.logprob) for row in told for place in row):
        raise ValueError("a log-probability that is no number")
    slots = tuple(range(len(_DECODING) + len(_READING)))
    last = StepPlan(number, captures=(Capture(0, len(_PROMPT), ends[0]),), releases=slots)
    for payload in runner.wait(runner.submit(last)).captured:
        if payload is not None:
            payload.close()


def _go_on(runner: Runner, mixed: StepResult, depth: int) -> tuple[int, dict[int, int]]:
    """A row, the one that was restored, and both; returns the next step and where each row ends."""
    restored, at = len(_DECODING), len(_PROMPT)
    tokens = {0: mixed.decoded[0].tokens, restored: (mixed.prefilled[0].token or 0,)}
    ends = {0: at + len(tokens[0]), restored: 2 * at}
    number = 3
    for slots in ((0,), (restored,), (0, restored)):
        for drafts in (depth, 0):
            rows = tuple(DecodeRow(s, ends[s], tokens[s][-1], drafts, ends[s]) for s in slots)
            result = runner.wait(runner.submit(StepPlan(number, decodes=rows)))
            number += 1
            for slot, decoded in zip(slots, result.decoded, strict=True):
                tokens[slot] = decoded.tokens
                ends[slot] += len(decoded.tokens)
    return number, ends


def _mixed(
    begun: Sequence[Prefilled], stored: Payload, base: int, depth: int, constraint: object | None
) -> StepPlan:
    """The step itself; begun: what the rows that decode have drawn. base: held by reference."""
    at = len(_PROMPT)
    restored, *cold = range(len(_DECODING), len(_DECODING) + len(_READING))
    return StepPlan(
        2,
        admits=(
            replace(_admit(restored, _READING[0], stored), base=base, constraint=constraint),
            *(_admit(slot, kind) for slot, kind in zip(cold, _READING[1:], strict=True)),
        ),
        decodes=tuple(
            DecodeRow(slot, at, each.token or 0, depth, 1) for slot, each in enumerate(begun)
        ),
        prefills=(_slice(restored, at), *(_slice(slot, 0) for slot in cold)),
    )


def _admit(slot: int, sampling: Sampling, stored: Payload | None = None) -> Admit:
    path = () if stored is None else (stored,)
    target = 0 if stored is None else stored.end
    return Admit(slot, target, path, sampling, 4 * len(_PROMPT), _PROMPT, top_logprobs=1)


def _slice(slot: int, start: int, capture: bool = False) -> PrefillSlice:
    return PrefillSlice(slot, start, _PROMPT, draws=True, capture=capture)
