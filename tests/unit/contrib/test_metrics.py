"""The dashboard, the alerts and the page of metrics name what `/metrics` of a service answers, and all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.server.metrics import Metrics
from kadeploy.state import journal
from kadeploy.state.journal import LogRow

ROOT = Path(__file__).parents[3]
RULES = ROOT / "contrib" / "prometheus" / "kadeploy.rules.yml"
SCRAPE = ROOT / "contrib" / "prometheus" / "scrape.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "kadeploy.json"
PAGE = ROOT / "docs" / "howto" / "metrics.md"

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^{}]*)\})?")
_MATCHER = re.compile(r'\s*(\w+)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"\s*')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset", "inf", "nan"}
FUNCTIONS = {
    "sum",
    "max",
    "min",
    "avg",
    "count",
    "topk",
    "rate",
    "increase",
    "histogram_quantile",
    "vector",
    "label_values",
}
PROMETHEUS_OWN = {"up": {"job", "instance"}}
TARGET = {"job", "instance"}
"""Labels that Prometheus gives to all series of a target."""
RANGES = re.compile(r"\[(?:\d+[smhd]|\$__rate_interval|\$__range)\]")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def families(site: Site) -> dict[str, Metric]:
    """What a service tells by which something has been done, by the names of its samples."""
    counted = Metrics()
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
    done = LogRow(hostname="gdx-1.site", step1="BroadcastEnvChain", step1_duration=3, success=False, error="no answer")
    journal.end("D-1", [done])
    counted.answered("GET", "/v1", 200, 0.1)
    text, _ = counted.text(load_configuration(), 0, "")
    return {each.name: one for one in text_string_to_metric_families(text.decode()) for each in one.samples}


def labels(families: dict[str, Metric], name: str) -> set[str]:
    """Labels of a metric."""
    return {label for each in families[name].samples if each.name == name for label in each.labels} | TARGET


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    return [each for each in dashboard()["panels"] if each["type"] != "row"]


def expressions() -> Iterator[str]:
    """Each query of the rules and of the dashboard."""
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query")


def selected(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics that an expression names, and the labels by which it selects them."""
    plain = RANGES.sub("", _GROUPING.sub("", expression))
    if variable := re.fullmatch(r"label_values\((.*), (\w+)\)", plain):
        yield from ((name, found | {variable[2]}) for name, found in selected(variable[1]))
        return
    for match in _SELECTOR.finditer(plain):
        name, inner = match.groups()
        called = plain[match.end() :].lstrip().startswith("(")
        if name.lower() in WORDS or called or name in FUNCTIONS:
            assert name in WORDS | FUNCTIONS, f"{expression}: {name} is no function that is known"
            continue
        yield name, {found[1] for found in _MATCHER.finditer(inner or "")}


def test_each_metric_that_dashboard_and_alerts_name_exists_with_its_labels(families: dict[str, Metric]) -> None:
    count = 0
    for expression in expressions():
        for name, wanted in selected(expression):
            known = PROMETHEUS_OWN.get(name) or labels(families, name)
            assert wanted <= known, f"{expression}: {name} has {known}"
            count += 1
    assert count > 50


def test_groups_and_legends_use_labels_that_there_are(families: dict[str, Metric]) -> None:
    for panel in panels():
        for target in panel["targets"]:
            names = {name for name, _ in selected(target["expr"])}
            known = {label for name in names for label in PROMETHEUS_OWN.get(name) or labels(families, name)}
            grouped = {
                each.strip()
                for match in _GROUPING.finditer(target["expr"])
                for each in match[1].split(",")
                if each.strip()
            }
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert grouped | shown <= known, panel["title"]
            assert not grouped or shown <= grouped, panel["title"]


def test_expressions_are_whole() -> None:
    for expression in expressions():
        bare = _TEXT.sub("", expression)
        for opened, closed in ("()", "[]", "{}"):
            assert bare.count(opened) == bare.count(closed), expression
        for match in _SELECTOR.finditer(expression):
            inner = match[2]
            assert not inner or all(_MATCHER.fullmatch(part) for part in re.split(r",(?=\s*\w+\s*[=!])", inner)), inner


def test_the_dashboard_shows_every_metric(families: dict[str, Metric]) -> None:
    shown = {
        families[name].name
        for panel in panels()
        for each in panel["targets"]
        for name, _ in selected(each["expr"])
        if name in families
    }
    ours = {family.name for family in families.values() if family.name.startswith("kadeploy_")}
    assert ours - shown == set()


def test_panels_have_places_of_their_own_and_take_the_chosen_source() -> None:
    found = dashboard()
    assert found["schemaVersion"] >= 38, "Grafana 10"
    assert next(each["type"] for each in found["templating"]["list"]) == "datasource"
    assert len({each["id"] for each in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        sources = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
        assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


def test_every_alert_says_how_bad_it_is_and_what_it_is_and_has_its_line_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        assert f"| `{rule['alert']}` |" in page
    assert len(re.findall(r"^\| `Kadeploy\w+` \|", page, re.MULTILINE)) == len(rules())


def test_each_metric_is_on_the_page_with_its_labels_and_nothing_else_is(families: dict[str, Metric]) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|([^|]*)\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", had)) for names, had in rows for name in re.findall(r"`(\w+)`", names)}
    metrics = {name: had for name, had in told.items() if name.startswith(("kadeploy_", "process_"))}
    samples = {name: one for name, one in families.items() if not name.endswith(("_bucket", "_sum", "_count"))}
    histograms = {one.name: f"{one.name}_count" for one in families.values() if one.type == "histogram"}
    known = {name: name for name in samples} | histograms
    assert set(metrics) == set(known)
    for name, had in metrics.items():
        assert had == labels(families, known[name]) - TARGET, name


def test_the_job_is_called_what_the_alerts_ask_for() -> None:
    found = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    [job] = found["scrape_configs"]
    assert job["job_name"] == "kadeploy"
    assert found["rule_files"] == [RULES.name]
    assert job["scheme"] == "https"
    assert "credentials_file" in job["authorization"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_rules_and_answer(tmp_path: Path) -> None:
    for path in (RULES, SCRAPE):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    done = subprocess.run(
        ["promtool", "check", "rules", RULES.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    syntax = ["promtool", "check", "config", "--syntax-only", SCRAPE.name]
    done = subprocess.run(syntax, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
