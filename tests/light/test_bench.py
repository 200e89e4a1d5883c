"""The small version of the benches that need simulated nodes runs; how long it takes is nobody's business here."""

from __future__ import annotations

import json
from pathlib import Path

from bench import boot, broadcast, deploy, history, inventory, page


def test_the_bench_of_deployments_runs_and_writes_its_figures(tmp_path: Path) -> None:
    figures, drawing = tmp_path / "figures.json", tmp_path / "plot.svg"
    assert deploy.main(["--quick", "--json", str(figures), "--plot", str(drawing)]) == 0
    runs = json.loads(figures.read_text())
    assert [run["what"] for run in runs] == ["kadeploy3", "ansible-playbook", "ssh per step"]
    assert [run["failed"] for run in runs] == [0, 0, 0]
    assert all(run["wall"] > 0 and run["cpu"] > 0 and run["memory"] > 0 for run in runs)
    assert runs[2]["connections"] == len(deploy.DOZEN), "one connection per node and step"
    assert "kadeploy3, openssh" in drawing.read_text(), "the legend"


def test_the_bench_of_broadcasts_sends_an_image_each_way(tmp_path: Path) -> None:
    rows = broadcast.measure_speeds(tmp_path, broadcast.make_image(tmp_path, 2), hops=2, rounds=1)
    assert {"chain", "tree of 2", "bare splice", "bittorrent", "ssh per node"} <= {row.name for row in rows}
    assert all(row.seconds > 0 for row in rows)


def test_the_bench_of_boot_servers_has_strangers_beside_ours(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert boot.main(["--quick", "--json", str(figures)]) == 0
    told = json.loads(figures.read_text())
    assert {row["server"] for row in told["tftp"]} >= {"ours", "dnsmasq"}
    assert all(row["rate"] > 0 and row["failures"] == [] for row in told["tftp"] + told["http"])


def test_the_bench_of_inventories_has_ours_beside_ansibles_own(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert inventory.main(["--quick", "--json", str(figures)]) == 0
    told = json.loads(figures.read_text())
    assert told["kadeploy"]["cpu"] > 0
    assert told["YAML"]["cpu"] > 0


def test_the_bench_of_the_page_has_browsers_at_a_run_and_the_same_without(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert page.main(["--quick", "--json", str(figures)]) == 0
    told = json.loads(figures.read_text())
    alone, beside = told["runs"]
    assert (alone["browsers"], alone["answers"]) == (0, 0)
    assert beside["answers"] >= beside["browsers"] > 0
    assert {each["page"] for each in told["pages"]} == set(page.PAGES)
    assert all(each["ms"] > 0 for each in told["pages"])


def test_the_bench_of_a_long_past_asks_a_service_and_the_tools(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert history.main(["--quick", "--json", str(figures)]) == 0
    told = json.loads(figures.read_text())
    assert [each["what"] for each in told] == [*history.QUESTIONS, *history.COMMANDS]
    assert all(each["p99"] >= each["p50"] > 0 for each in told)
