"""Alert rules and dashboard speak of metrics that the server has, with labels that these have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_client import ReplicaInfo, ScorerInfo
from reward_server.observability.build_info import build_info
from reward_server.observability.metrics import Metrics

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/reward.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
_NAME = re.compile(r"\b((?:reward|process)_[a-z_]+)(?:\{([^}]*)\})?")
# Put there by Prometheus itself.
_SCRAPED = {"instance", "job"}


def labels_by_metric() -> dict[str, set[str]]:
    """Every sample name that a server can expose, with its labels."""
    metrics = Metrics()
    metrics.publish_build(build_info({"REWARD_REVISION": "abc"}))
    replica = ReplicaInfo("0", "READY", "cuda:0", 1, 0, 1 << 30, 1 << 30)
    info = ScorerInfo("s", "1", "f", (), ("raw",), "raw", (0.0, 1.0), "READY", "", (replica,))
    metrics.watch(lambda: (info,))
    metrics.observe_score("s", 0.5)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        names = {sample.name for sample in family.samples}
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + end for end in kinds.get(family.type, ("",))}
        for name in names:
            found.setdefault(name, set()).update(
                label for sample in family.samples for label in sample.labels
            )
    for collector in list(metrics.registry._collector_to_names):  # labels of families still empty
        labels = getattr(collector, "_labelnames", ())
        for name in metrics.registry._collector_to_names[collector]:
            found.setdefault(name, set()).update(labels)
    return found


KNOWN = labels_by_metric()


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel.get("targets", ())]


QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES] + [
    (panel["title"], query) for panel in DASHBOARD["panels"] for query in expressions(panel)
]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_queries_name_metrics_and_labels_that_exist(title: str, query: str) -> None:
    named = _NAME.findall(query)
    assert named or "up{" in query
    for metric, selector in named:
        assert metric in KNOWN, f"{title}: no metric {metric}"
        selected = set(re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)", selector))
        assert selected <= KNOWN[metric] | _SCRAPED | {"le"}, f"{title}: {metric}{{{selector}}}"


def test_every_alert_says_what_to_do_and_how_urgent_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "action"}


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    shown = " ".join(query for panel in DASHBOARD["panels"] for query in expressions(panel))
    for metric in (
        "reward_waiting_items",
        "reward_oldest_wait_seconds",
        "reward_batch_items_sum",
        "reward_batch_fill_ratio_sum",
        "reward_queue_seconds_bucket",
        "reward_compute_seconds_bucket",
        "reward_worker_restarts_total",
        "reward_score_bucket",
        "reward_worker_gpu_memory_bytes",
    ):
        assert metric in shown
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(boxes)
