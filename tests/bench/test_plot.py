"""The plot is optional, and says so in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqshm.bench import plot
from vqshm.bench.measures import Case
from vqshm.bench.peers import OTHERS, OURS
from vqshm.bench.rounds import Sample, summarise
from vqshm.errors import MissingExtra


def test_without_matplotlib_it_names_the_command(monkeypatch):
    monkeypatch.setattr(plot, "available", lambda: False)
    with pytest.raises(MissingExtra, match=r"pip install 'vqshm\[bench\]'"):
        plot.check(Path("figures.png"))


@pytest.mark.parametrize("name", ["figures", "figures.txt", "png"])
def test_a_plot_of_another_kind_is_refused(name):
    with pytest.raises(ValueError, match=r"ends with \.png, \.svg"):
        plot.check(Path(name))


@pytest.mark.skipif(not plot.available(), reason="matplotlib is not installed")
@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_every_kind_of_panel_is_drawn(tmp_path, suffix):
    facts = {"value": 10.0, "histogram": [[0.5, 3], [1.0, 7]]}
    cases = [
        *(Case("oneway", "64 B", "single", 64, peer) for peer in (OURS[0], OTHERS[0])),
        *(Case("roundtrip", "64 B", "ping-pong", 64, peer) for peer in (OURS[0], OTHERS[0])),
        *(Case("growth", "messages", "ring", size, OURS[0]) for size in (8, 64)),
        Case("kicks", "64 B", "single", 64, OURS[0]),
    ]
    samples = [Sample(case, 0, facts) for case in cases]
    samples.append(Sample(Case("idle", "all", "single", 64, OTHERS[1]), 0, {}, "no luck"))
    samples.append(Sample(Case("kicks", "64 B", "batch", 64, OURS[1]), 0, {"value": 0.0}))
    plot.draw(summarise(samples), tmp_path / f"figures{suffix}")
    assert (tmp_path / f"figures{suffix}").stat().st_size > 1000
