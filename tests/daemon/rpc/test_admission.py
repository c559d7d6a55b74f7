"""What a served request becomes: defaults, caps, noise, and where it is tokenised."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.admission import Admission
from sapwood.daemon.rpc.principals import root_key
from sapwood.daemon.rpc.rules import (
    GENERATE_RULES,
    PROMPT_RULES,
    SAMPLING_RULES,
    Bounds,
    PromptTokens,
    sampler_of,
)
from sapwood.scheduler.events import Priority, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling, SamplingDefaults
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.daemon.conftest import prompt_of
from tests.daemon.fakes import CONTEXT, FACTS, SOMEBODY, VOCABULARY, ByteTokenizer

LIMITS = Limits()
BOUNDS = Bounds(LIMITS, FACTS)
USER = {"role": "user", "content": "hi"}
GREEDY = SamplingDefaults()


def admission(
    tokenizer: ByteTokenizer | None = None,
    depth: int | None = None,
    defaults: SamplingDefaults = GREEDY,
) -> Admission:
    card = ModelCard("m", "f", b"key", FACTS, defaults, tokenizer or ByteTokenizer())
    return Admission(card, LIMITS, depth)


async def admitted(
    request: pb.GenerateRequest, depth: int | None = None, defaults: SamplingDefaults = GREEDY
) -> Request:
    door = admission(depth=depth, defaults=defaults)
    try:
        return await door.admit(request, 12.5, SOMEBODY)
    finally:
        door.close()


@pytest.mark.anyio
async def test_a_request_carries_what_was_asked_for() -> None:
    request = prompt_of(
        5,
        6,
        max_tokens=7,
        stop=["x"],
        stop_token_ids=[9],
        ignore_eos=True,
        min_tokens=2,
        draft_tokens=3,
        cache={"bypass": True, "store_reply": False},
        top_logprobs=4,
        prompt_logprobs=6,
        priority=pb.PRIORITY_INTERACTIVE,
        deadline_policy=pb.DEADLINE_POLICY_EARLY,
        sampling={
            "temperature": 0.5,
            "seed": 2**64 - 1,
            "repetition_penalty": 1.5,
            "presence_penalty": -0.5,
            "frequency_penalty": 0.25,
            "logit_bias": {9: -2.0, 3: 0.0, 7: 100.0},
        },
    )
    assert await admitted(request) == Request(
        id=1,
        root=root_key(b"key", SOMEBODY.salt),
        prompt=(5, 6),
        max_tokens=7,
        sampling=Sampling(
            0.5,
            seeded=True,
            noise_key=2**64 - 1,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias=((7, 100.0), (9, -2.0)),
        ),
        stop=("x",),
        stop_token_ids=frozenset({9}),
        ignore_eos=True,
        min_tokens=2,
        top_logprobs=4,
        prompt_logprobs=6,
        depth=3,
        cache_bypass=True,
        store_reply=False,
        deadline=12.5,
        principal=SOMEBODY.name,
        weight=SOMEBODY.weight,
        priority=Priority.INTERACTIVE,
        early=True,
    )


@pytest.mark.anyio
async def test_unset_fields_have_the_contracts_defaults() -> None:
    request = await admitted(prompt_of(5))
    assert (request.max_tokens, request.depth, request.store_reply) == (512, None, True)
    assert (request.cache_bypass, request.stop, request.sampling.greedy) == (False, (), True)
    assert (await admitted(prompt_of(5, cache={}))).store_reply


@pytest.mark.anyio
@pytest.mark.parametrize("explicit", [{}, {"max_tokens": 5000}])
async def test_max_tokens_is_capped_by_the_context(explicit: dict[str, Any]) -> None:
    request = await admitted(prompt_of(*[5] * (CONTEXT - 100), **explicit))
    assert request.max_tokens == 100


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("defaults", "prompt_tokens", "expected"),
    [
        (SamplingDefaults(max_tokens=7), 5, 7),
        (SamplingDefaults(max_tokens=700, total_tokens=20), 5, 700),  # as in transformers
        (SamplingDefaults(max_tokens=10**9), 5, CONTEXT - 5),
        (SamplingDefaults(total_tokens=20), 5, 15),
        (SamplingDefaults(total_tokens=20), 30, 1),
        (SamplingDefaults(total_tokens=10**9), 5, 512),
    ],
)
async def test_the_models_own_default_of_max_tokens_comes_before_the_daemons(
    defaults: SamplingDefaults, prompt_tokens: int, expected: int
) -> None:
    prompt = [5] * prompt_tokens
    assert (await admitted(prompt_of(*prompt), defaults=defaults)).max_tokens == expected
    asked = await admitted(prompt_of(*prompt, max_tokens=9), defaults=defaults)
    assert asked.max_tokens == 9


@pytest.mark.anyio
async def test_the_daemons_depth_is_for_requests_that_set_none() -> None:
    assert (await admitted(prompt_of(5), depth=2)).depth == 2
    assert (await admitted(prompt_of(5, draft_tokens=0), depth=2)).depth == 0


def test_unset_sampling_comes_from_the_models_generation_config() -> None:
    model = SamplingDefaults(0.7, 64, 0.95, 0.05, repetition_penalty=1.2)
    unset = sampler_of(pb.Sampling(), model, BOUNDS)
    assert (unset.temperature, unset.top_k, unset.top_p, unset.min_p) == (0.7, 64, 0.95, 0.05)
    given_zero = sampler_of(pb.Sampling(temperature=0, top_k=0, min_p=0), model, BOUNDS)
    assert (given_zero.temperature, given_zero.top_k, given_zero.min_p) == (0, 0, 0)
    assert given_zero.top_p == 0.95
    assert (unset.repetition_penalty, unset.adjusted) == (1.2, True)
    neutral = pb.Sampling(repetition_penalty=1, presence_penalty=0, logit_bias={5: 0})
    assert not sampler_of(neutral, model, BOUNDS).adjusted


def test_a_top_k_that_keeps_everything_is_off() -> None:
    for top_k in (VOCABULARY, 2**32 - 1):
        assert sampler_of(pb.Sampling(top_k=top_k), GREEDY, BOUNDS).top_k == 0
    below = sampler_of(pb.Sampling(top_k=VOCABULARY - 1), GREEDY, BOUNDS)
    assert below.top_k == VOCABULARY - 1


def test_unseeded_requests_have_noise_of_their_own() -> None:
    keys = {sampler_of(pb.Sampling(), GREEDY, BOUNDS).noise_key for _ in range(50)}
    assert len(keys) == 50
    assert all(0 <= key < 1 << 64 for key in keys)
    seeded = sampler_of(pb.Sampling(seed=0), GREEDY, BOUNDS)
    assert (seeded.seeded, seeded.noise_key) == (True, 0)


@pytest.mark.anyio
async def test_two_workers_tokenise_and_a_cancelled_caller_frees_no_third() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.gate.clear()
    door = admission(tokenizer)
    request = pb.GenerateRequest(text="x")
    calls = [asyncio.ensure_future(door.admit(request, 0, SOMEBODY)) for _ in range(9)]
    await asyncio.sleep(0.05)
    calls[0].cancel()
    await asyncio.sleep(0.05)
    busy = [t for t in threading.enumerate() if t.name.startswith("tokenise")]
    assert len(busy) == len(tokenizer.threads) == LIMITS.tokenise_workers
    tokenizer.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, Request) for result in results) == 8
    door.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_", "prompt"),
    [(prompt_of(5, 6, 9), (5, 6, 9)), (pb.GenerateRequest(text="\x03"), (2, 6))],
)
async def test_ids_and_texts_may_hold_the_tokens_of_images_and_sound(
    request_: pb.GenerateRequest, prompt: tuple[int, ...]
) -> None:
    """A reply may hold one, and the next turn goes on with its ids."""
    assert (await _with_media(request_)).prompt == prompt


@pytest.mark.anyio
async def test_a_template_that_writes_tokens_of_images_is_unsupported() -> None:
    """A conversation has text alone: such a token would stand for what is not there."""
    said = [prompt_pb2.Message(role="user", content="\x03")]
    request_ = pb.GenerateRequest(messages=prompt_pb2.Messages(messages=said))
    assert 6 in (await _with_media(request_, frozenset())).prompt
    with pytest.raises(Refused, match="image, audio or video") as caught:
        await _with_media(request_)
    assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, "messages")


@pytest.mark.anyio
async def test_tokenize_says_the_same_of_tokens_of_images() -> None:
    """It gives the ids that Generate would see."""
    card = ModelCard("m", "f", b"", FACTS, GREEDY, ByteTokenizer(), media_token_ids=frozenset({6}))
    door = Admission(card, LIMITS)
    said = [prompt_pb2.Message(role="user", content="\x03")]
    with pytest.raises(Refused, match="image, audio or video") as caught:
        await door.tokenize(pb.TokenizeRequest(messages=prompt_pb2.Messages(messages=said)))
    assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, "messages")
    assert 6 in await door.tokenize(pb.TokenizeRequest(text="\x03"))
    door.close()


async def _with_media(
    request_: pb.GenerateRequest, media: frozenset[int] = frozenset({6, 9})
) -> Request:
    card = ModelCard("m", "f", b"", FACTS, GREEDY, ByteTokenizer(), media_token_ids=media)
    door = Admission(card, LIMITS)
    try:
        return await door.admit(request_, 0, SOMEBODY)
    finally:
        door.close()


@pytest.mark.anyio
async def test_only_what_will_be_generated_from_must_fit_the_context() -> None:
    """Tokenize counts what no context holds, up to a limit of its own."""
    door = admission()
    text = "x" * (3 * CONTEXT)
    assert len(await door.tokenize(pb.TokenizeRequest(text=text))) == 3 * CONTEXT + 1
    with pytest.raises(Refused, match=f"at least {3 * CONTEXT} tokens.* at most {CONTEXT} fit"):
        await door.admit(pb.GenerateRequest(text=text), 0, SOMEBODY)
    door.close()


FLOATS = st.floats(width=32)
REQUESTS = st.builds(
    pb.GenerateRequest,
    text=st.text(max_size=20),
    max_tokens=st.none() | st.integers(0, 2**32 - 1),
    stop=st.lists(st.text(max_size=40), max_size=10),
    stop_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=70),
    draft_tokens=st.none() | st.integers(0, 2**32 - 1),
    priority=st.integers(0, 5),
    candidates=st.integers(0, 3),
    sampling=st.builds(
        pb.Sampling,
        temperature=st.none() | FLOATS,
        top_k=st.none() | st.integers(0, 2**32 - 1),
        top_p=st.none() | FLOATS,
        min_p=st.none() | FLOATS,
        seed=st.none() | st.integers(0, 2**64 - 1),
        repetition_penalty=st.none() | FLOATS,
        presence_penalty=st.none() | FLOATS,
        frequency_penalty=st.none() | FLOATS,
        logit_bias=st.dictionaries(st.integers(0, 400), FLOATS, max_size=3),
    ),
    top_logprobs=st.integers(0, 2**32 - 1),
)


@given(REQUESTS)
def test_r4_a_request_is_servable_or_refused(request: pb.GenerateRequest) -> None:
    """Nothing else leaves the door, whatever comes in."""
    try:
        result = asyncio.run(admitted(request))
    except Refused:
        return
    assert result.prompt
    assert max(result.prompt) < VOCABULARY
    assert 1 <= result.max_tokens <= CONTEXT - len(result.prompt)
    sampling = result.sampling
    assert 0 <= sampling.temperature < float("inf")
    assert 0 < sampling.top_p <= 1
    assert 0 <= sampling.min_p <= 1
    assert 0 <= sampling.top_k < VOCABULARY
    assert 0 < sampling.repetition_penalty < float("inf")
    assert abs(sampling.presence_penalty) <= 2
    assert abs(sampling.frequency_penalty) <= 2
    assert all(id < VOCABULARY and abs(bias) <= 100 for id, bias in sampling.logit_bias)
    assert 0 <= result.top_logprobs <= LIMITS.top_logprobs_max
    assert result.depth is None or 0 <= result.depth <= LIMITS.draft_depth_max


def test_every_rule_can_say_what_is_wrong() -> None:
    """Format strings are checked by nobody else: each names bounds that there are."""
    refusals = [rule.refusal(pb.GenerateRequest(), BOUNDS) for rule in GENERATE_RULES]
    refusals += [rule.refusal(Sampling(), BOUNDS) for rule in SAMPLING_RULES]
    refusals += [rule.refusal(PromptTokens("text", (), "9"), BOUNDS) for rule in PROMPT_RULES]
    for refusal in refusals:
        assert refusal.field and refusal.message and not set("{}") & set(refusal.message)
    assert "the prompt has 9 tokens; with one token of reply" in refusals[-3].message


@pytest.mark.anyio
@pytest.mark.parametrize("tools", [[], [prompt_pb2.Tool(name="f")]])
async def test_messages_are_unsupported_where_the_model_has_no_template_for_them(
    tools: list[prompt_pb2.Tool],
) -> None:
    class ForTools(ByteTokenizer):
        def features(self, tools: bool) -> frozenset[str] | None:
            return super().features(tools) if tools else None

    door = admission(ForTools())
    said = prompt_pb2.Message(role="user", content="hi")
    asked = prompt_pb2.Messages(messages=[said], tools=tools)
    if tools:
        assert await door.tokenize(pb.TokenizeRequest(messages=asked))
    else:
        for coming in (
            door.tokenize(pb.TokenizeRequest(messages=asked)),
            door.admit(pb.GenerateRequest(messages=asked), 0, SOMEBODY),
        ):
            with pytest.raises(Refused) as caught:
                await coming
            assert caught.value.reason == Reason.UNSUPPORTED
    door.close()
