"""A request's constraint, built: what each reply that is held to it begins with.

- A Constraint is a template: each reply walks a copy of its matcher. Copies are made on the engine
  thread alone, so that no two calls meet in one matcher.
"""

from __future__ import annotations

from llguidance import LLMatcher

from sapwood.model.constraints.vocabulary import Vocabulary, Words, allow


class Constraint:
    """What replies of one request are held to. Immutable, but for being copied from.

    first: the mask where a text or block begins. talks: the text beside calls is free. thinks: the
    reply may begin with a channel of thought.
    """

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, first: Words, *, talks: bool, thinks: bool
    ) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self.first = first
        self.talks = talks
        self.thinks = thinks and vocabulary.control.channel_start is not None
        self.opening = first.copy()
        if self.thinks:
            assert vocabulary.control.channel_start is not None
            allow(self.opening, vocabulary.control.channel_start)

    def matcher(self) -> LLMatcher:
        """A fresh one, at the beginning. On the engine thread."""
        return self._matcher.deep_copy()
