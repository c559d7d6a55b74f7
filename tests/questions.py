"""What readers ask, in the words that they would search for, and where the answer stands."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """page: in docs/. heading: of the section. answer: what has to stand there."""

    asked: str
    page: str
    heading: str
    answer: str


QUESTIONS = (
    Question(
        "how much memory does 26B-A4B 4-bit need",
        "sizes.md",
        "26B-A4B",
        "26B-A4B 4-bit needs",
    ),
    Question(
        "serve a model from a hub id with its drafter",
        "start.md",
        "A real model",
        "sapwood pull mlx-community/gemma-4-26b-a4b-it-4bit",
    ),
    Question(
        "reach it from Open WebUI",
        "openai.md",
        "Where to put the URL",
        "| Open WebUI | Settings, Connections, OpenAI API: URL `http://127.0.0.1:8080/v1`",
    ),
    Question(
        "why did a reply stop", "troubleshooting.md", "Why a reply stopped", "`max_tokens` were"
    ),
    Question("why are drafts off", "troubleshooting.md", "Drafts are off", "no drafter is loaded"),
    Question("pin a system prompt", "memory.md", "Pins", 'sapwood pin --system "You are …"'),
    Question(
        "what is shared between tenants",
        "tenants.md",
        "What tenants share",
        "Nothing in the prefix tree is shared between principals",
    ),
    Question(
        "how to put TLS on",
        "tenants.md",
        "TLS and tokens, in four commands",
        "--tls-cert server.pem --tls-key server.key",
    ),
    Question(
        "what does strict cost",
        "numerics.md",
        "What strict costs",
        "A step of one row computes products of sixteen",
    ),
    Question(
        "see what was evicted",
        "troubleshooting.md",
        "What was evicted",
        "`sapwood_tree_evictions_total{cause}`",
    ),
    Question("how to size --memory", "tuning.md", "Size `--memory`", "the table of your model"),
    Question("what is a near-tie", "concepts.md", "Numerics", "At a *near-tie*"),
    Question("run under launchd", "operations.md", "launchd", "launchctl bootstrap gui/$(id -u)"),
    Question("how to upgrade", "operations.md", "Upgrading", "sapwood config check FILE"),
    Question(
        "what does QUEUE_FULL mean and when to retry",
        "errors.md",
        "QUEUE_FULL, and when to try again",
        "Its RetryInfo says when",
    ),
    Question("resume a broken stream", "sessions.md", "Resume", "`resume { session, from_token }`"),
    Question(
        "get JSON by a schema", "structured.md", "JSON schemas", "Drafts 6 to 2020-12, by the rules"
    ),
    Question(
        "write a client in TypeScript",
        "typescript.md",
        "A client in TypeScript",
        "which is there to be copied",
    ),
    Question(
        "which metric shows prefix hits",
        "metrics.md",
        "Questions and expressions",
        "`rate(sapwood_prefix_cached_tokens_total[5m])",
    ),
    Question(
        "report a fault with a recording",
        "troubleshooting.md",
        "Report a fault",
        "sapwood serve --record fault.rec",
    ),
)
