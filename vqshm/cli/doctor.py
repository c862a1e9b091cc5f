"""`vqshm doctor`: says what this machine offers, and what to do about what it lacks."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.text import Text

from vqshm.cli.console import BAD, DIM, GOOD, WARNING, console, grid
from vqshm.view.machine import Finding, examine

SIGNS = {"ok": ("✓", GOOD), "warn": ("!", WARNING), "fail": ("✗", BAD)}


@click.command(short_help="Say what this machine offers, and what it lacks.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of maps: check, level, value, advice.")
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Look at everything vqshm needs of this machine.

    Each line is ✓ fine, ! worth a thought, or ✗ missing; the last makes the exit code 1.
    """
    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.level == "fail" for finding in findings):
        ctx.exit(1)


def _print(findings: list[Finding]) -> None:
    table = grid("", "", "")
    before = ""
    for finding in findings:
        words = Text(finding.value)
        if finding.advice:
            words.append(f"\n→ {finding.advice}", SIGNS[finding.level][1] if finding.level != "ok" else DIM)
        table.add_row(Text(*SIGNS[finding.level]), finding.check if finding.check != before else "", words)
        before = finding.check
    screen = console()
    screen.print(table)
    failed = [finding.check for finding in findings if finding.level == "fail"]
    warned = [finding.check for finding in findings if finding.level == "warn"]
    if failed:
        verdict = Text(f"vqshm cannot work here yet: {', '.join(dict.fromkeys(failed))}", BAD)
    elif warned:
        verdict = Text(f"vqshm works here; worth a thought: {', '.join(dict.fromkeys(warned))}", WARNING)
    else:
        verdict = Text("vqshm works here", GOOD)
    screen.print()
    screen.print(verdict)
