"""A session's last reply is gone on with: after a cut, while it runs, and when it is whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.core.last_reply import LastReply
from sapwood.scheduler.events import Drain, Failed
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import ResumeReply
from tests.scheduler.house import Stream, failed, finished, prompt
from tests.scheduler.session_house import LONG, SessionHouse, begun, house, key, tokens, whole


@pytest.mark.parametrize("seeded", [False, True])
def test_n3_a_reply_that_was_cut_goes_on_where_it_was(seeded: bool) -> None:
    """The house holds every stream to the whole reply, each token and character once."""
    sampling = Sampling(temperature=1.0, noise_key=77, seeded=seeded)
    made = house()
    stream = begun(made, made.speak("a", prompt(20), 40, sampling=sampling, **LONG), 5)
    made.cancel(stream)
    made.run()
    again = made.resume(stream)
    assert not again.progress or again.progress[-1].processed == 20
    whole(made, again)
    assert len(again.tokens) == 40
    assert tokens(made, "a") == (*prompt(20), *again.tokens)
    usage = finished(again).usage
    assert usage.prompt_tokens == 20 and usage.completion_tokens == 40
    made.close()


def test_n3_who_was_cut_in_the_prompt_begins_again() -> None:
    made = house()
    stream = made.speak("a", prompt(60), 6, **LONG)
    made.step()
    made.cancel(stream)
    made.run()
    again = made.resume(stream)
    whole(made, again)
    assert again.progress[0].cached >= 16, "what was read is there"
    made.close()


def test_n3_a_running_one_is_taken_over_with_its_row() -> None:
    made = house()
    stream = begun(made, made.speak("a", prompt(20), 40, **LONG), 5)
    evaluated = made.device.evaluated_tokens
    again = made.resume(stream)
    made.deliver()
    assert failed(stream).reason is Reason.CANCELLED
    made.cancel(stream)  # the old stream's own, late
    third = made.resume(again)
    whole(made, third)
    assert failed(again).reason is Reason.CANCELLED
    assert made.device.evaluated_tokens - evaluated < 40 * 9, "nothing was read again"
    assert made.core.stats().requests[Outcome.CANCELLED] == 0
    made.close()


def test_a_reply_that_was_taken_over_has_its_new_streams_deadline_and_cancel() -> None:
    made = house()
    stream = begun(made, made.speak("a", prompt(20), 400, **LONG))
    again = made.resume(stream, deadline=made.now + 0.1)
    made.run()
    assert failed(again).reason is Reason.DEADLINE_EXCEEDED
    third = made.resume(again)
    begun(made, third, len(again.tokens) + 1)
    fourth = made.resume(third)
    made.cancel(fourth, CancelReason.SLOW_READER)
    made.run()
    assert failed(fourth).reason is Reason.SLOW_READER
    made.close()


def test_of_a_whole_reply_less_is_kept() -> None:
    """Its constraint may be large; and tokens are kept once, packed."""
    made = house()
    whole(made, made.speak("a", prompt(20), 12, constraint=object(), **LONG))
    session = made.core._sessions._sessions[key("a")]
    last = session.last
    assert isinstance(last, LastReply) and last.tokens is session.tokens
    assert last.request.constraint is None and last.request.prompt == () and last.reply is None
    made.close()


def test_n3_a_whole_reply_is_told_again_with_its_end() -> None:
    made = house()
    stream = whole(made, made.speak("a", prompt(20), 12, **LONG))
    nothing_read = Stream(stream.request)
    again = made.resume(nothing_read)
    made.deliver()
    assert again.end == replace(finished(stream), id=again.request.id)
    assert again.tokens == stream.tokens and again.text == stream.text
    assert not made.core.has_work
    made.close()


def test_what_there_is_not_is_not_resumed() -> None:
    made = house()
    stream = Stream(made.speak("a", prompt(5), 3, top_logprobs=2).request)
    made.run()
    assert failed_now(made, stream) is Reason.UNSUPPORTED
    stream = whole(made, made.speak("a", prompt(5), 3, **LONG))
    length = len(tokens(made, "a"))
    made.handle(ResumeReply(next(made.ids), key("a"), length + 1))
    past = made.answered()
    assert isinstance(past, Failed) and past.reason is Reason.BAD_REQUEST
    made.rollback("a", length - 1)
    assert failed_now(made, stream) is Reason.BAD_REQUEST, "it was forgotten"
    assert made.core.stats().rejected[Reason.BAD_REQUEST] == 2
    made.close()


def failed_now(made: SessionHouse, stream: Stream) -> Reason:
    again = made.resume(stream)
    made.deliver()
    return failed(again).reason


def test_who_resumes_is_let_in_as_others_are() -> None:
    made = house(slots_max=1, queued_max=1)
    stream = begun(made, made.speak("a", prompt(20), 30, **LONG), 3)
    made.cancel(stream)
    others = [made.submit(prompt(9, n), 20, **LONG) for n in range(2)]
    made.step()
    waits = made.submit(prompt(9, 5), 3)
    made.step()
    full = made.resume(stream)
    made.deliver()
    ends = [other.end for other in (*others, waits, full)]
    refused = [end for end in ends if isinstance(end, Failed)]
    assert refused and {end.reason for end in refused} == {Reason.QUEUE_FULL}
    made.run()
    whole(made, made.resume(stream))
    made.close()


def test_a_drain_lets_nobody_resume_what_does_not_run() -> None:
    made = house()
    stream = begun(made, made.speak("a", prompt(20), 30, **LONG), 3)
    made.cancel(stream)
    made.run()
    made.handle(Drain())
    assert failed_now(made, stream) is Reason.DRAINING
    made.close()
