"""The report as a person reads it: tables, the tree, and what held.

- Every figure comes from the report; nothing is computed here but ratios of two of its figures.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sapwood.daemon.demo.dialogue import Dialogue
from sapwood.daemon.demo.report import ClientFigures, DemoReport
from sapwood.daemon.demo.scrape import Check
from sapwood.daemon.render import draw_tree


def report_tables(report: DemoReport) -> RenderableType:
    """All of it, in the order in which it is read."""
    return Group(
        "",
        clients_table(report),
        "",
        throughput_lines(report),
        "",
        Text("prefix tree after the eight together", style="bold"),
        draw_tree(report.together.nodes),
        "",
        checks_table(report),
        "",
        claim_lines(report),
    )


def clients_table(report: DemoReport) -> Table:
    """A row for each client, in the order of the cast: the phase together."""
    table = _table("clients, together")
    table.add_column("client")
    for name in ("prompt", "cached", "generated", "first token", "accepted/round"):
        table.add_column(name.replace(" ", "\n").replace("/", "\nper "), justify="right")
    table.add_column("finish")
    pairs = zip(report.figures.clients, report.together.dialogues, strict=True)
    for figures, dialogue in pairs:
        table.add_row(*_client_row(figures, dialogue))
    table.caption = "stories are drawn with the model's sampling and a seed, the rest is greedy"
    if report.together.dialogues[0].over_http:
        table.caption += "; over HTTP nobody tells of rounds"
    return table


def _client_row(figures: ClientFigures, dialogue: Dialogue) -> tuple[str, ...]:
    part, name = dialogue.part, figures.id
    if part.follow_up:
        name += ", 2 turns"
    if part.joins_at:
        name += ", late"
    return (
        name,
        str(figures.prompt_tokens),
        str(figures.cached_tokens),
        str(figures.completion_tokens),
        f"{figures.ttft_s:.3f} s",
        f"{figures.accepted_tokens / figures.rounds:.2f}" if figures.rounds else "none",
        figures.finish,
    )


def throughput_lines(report: DemoReport) -> Text:
    """Tokens per second of both phases, and what computed them."""
    figures, model = report.figures, report.together.model
    together, alone = figures.tokens_per_s_together, figures.tokens_per_s_one_by_one
    unit = "letter" if report.together.dialogues[0].over_http else "token"
    return Text.assemble(
        ("throughput  ", "bold"),
        f"{together:.1f} tokens/s together, {alone:.1f} one by one: ",
        (f"{together / alone:.2f} times", "bold"),
        f"\nthe same requests, each phase on a fresh daemon; {report.same_replies} of "
        f"{len(figures.clients)} replies {unit} for {unit} the same in both",
        f"\nmodel {model.name}, drafter {model.drafter or 'none'}, device {model.device}",
        f"\nBLAS {figures.blas}",
    )


def checks_table(report: DemoReport) -> Table:
    """A row for each counter of the phase together; of the other, how many agree."""
    table = _table("/metrics against the clients' own sums, together")
    table.add_column("counter")
    for name in ("counted", "clients saw", "agree"):
        table.add_column(name, justify="right")
    for check in report.together.checks:
        if check.high or check.counted:  # outcomes that nobody had say nothing
            table.add_row(check.name, f"{check.counted:g}", _range(check), _mark(check.agrees))
    held = sum(check.agrees for check in report.one_by_one.checks)
    table.caption = f"one by one: {held} of {len(report.one_by_one.checks)} agree"
    return table


def claim_lines(report: DemoReport) -> Text:
    """A line for each claim, marked as kept or broken."""
    lines = [Text.assemble(_mark(claim.holds), f" {claim.text}") for claim in report.claims]
    return Text("\n").join(lines)


def _range(check: Check) -> str:
    return str(check.low) if check.low == check.high else f"{check.low} to {check.high}"


def _mark(good: bool) -> Text:
    return Text("✓", style="green") if good else Text("✗", style="bold red")


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
