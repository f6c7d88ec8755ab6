# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Metrics of a registry that has worked, and what is made of them.

The dashboard and the rules for alerts are compared with what Prometheus gets.
"""

import gc
import json
import re
import threading
from collections import defaultdict
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text, update

import anyblok_multi_engines
from anyblok_multi_engines import metrics
from anyblok_multi_engines.errors import StaleReadError
from anyblok_multi_engines.events import Cause, Waited
from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.routing.decision import Reason
from anyblok_multi_engines.testing import wait_until

from .conftest import (
    Registries,
    database_of,
    make_ready,
    restored_options,
)
from .processes import process

DOC = Path(anyblok_multi_engines.__file__).parent.parent / "doc"
DASHBOARD = DOC / "reference" / "grafana-dashboard.json"
ALERTS = DOC / "howto" / "alerts.yml"
HELLO = text("SELECT current_setting('port')")

# Given by Prometheus when it asks.
OF_PROMETHEUS = {"instance"}

# What labels say.
VALUES = {
    "cause": set(Cause),
    "reason": set(Reason),
    "server": {"none", "primary", "replica1", "replica2"},
    "status": set(Status),
    "waited_for": set(Waited),
}

needs_doc = pytest.mark.skipif(
    not DOC.is_dir(), reason="an installed package has no documentation"
)


class Exposition:
    """What Prometheus gets"""

    def __init__(self, collectors):
        self.text = generate_latest(collectors).decode()
        self.families = {
            family.name: family
            for family in text_string_to_metric_families(self.text)
            # The library's own: since when it has counted.
            if not family.name.endswith("_created")
        }
        self.samples = defaultdict(list)
        for family in self.families.values():
            for sample in family.samples:
                self.samples[sample.name].append(sample)

    def value(self, name, **labels):
        """Return the sum of what has these labels"""
        return sum(
            sample.value
            for sample in self.samples[f"anyblok_engines_{name}"]
            if labels.items() <= sample.labels.items()
        )

    def labels(self, name):
        """Return the labels that a metric has"""
        return set(self.samples[name][0].labels) | OF_PROMETHEUS


def read(registry):
    registry.execute(HELLO)
    registry.rollback()


def work(registry, servers):
    """Meet everything that is counted, but for a promotion"""
    cluster = servers.cluster
    for _ in range(3):
        read(registry)

    retries = []
    event.listen(registry, "retry", lambda retry: retries.append(retry))
    while not retries:
        # Unless the monitor has met the end of its own connection first.
        registry.execute(HELLO)
        for replica in cluster.replicas:
            replica.terminate_backends()

        read(registry)
        make_ready(registry, "replica1", "replica2")

    registry.Book.insert(title="x")
    registry.commit()
    cluster.wait_for_replay()
    book = registry.Book.query().one()
    cluster.primary.execute(
        "update book set title = 'other'", database=servers.database
    )
    with registry.session.no_autoflush:
        book.title = "mine"

    with pytest.raises(StaleReadError):
        registry.flush()

    registry.rollback()
    cluster.wait_for_replay()
    for replica in cluster.replicas:
        replica.pause_replay()

    registry.execute(update(registry.Book).values(copies=1))
    registry.commit()
    # Neither has it within the time.
    read(registry)
    for replica in cluster.replicas:
        replica.resume_replay()

    servers.first.stop()
    registry.monitor.step()
    servers.first.start()
    wait_until(
        "it is not back",
        lambda: not registry.health().unusable,
        timeout=30,
    )
    registry.monitor.step()


@pytest.fixture(scope="module")
def worked(anyblok_cluster_session, template):
    """Give a registry that has worked, and its exposition"""
    collectors = CollectorRegistry()
    with (
        restored_options() as options,
        database_of(anyblok_cluster_session, template) as servers,
    ):
        registries = Registries(options)
        registry = registries.replicated(
            servers, db_ro_wait=0.02, db_ro_check_interval=0.1
        )
        metrics.register(registry, collectors)
        work(registry, servers)
        yield registry, Exposition(collectors)
        registries.close()


@pytest.fixture
def exposed(worked):
    return worked[1]


class TestWhatIsCounted:
    def test_every_metric_has_a_sample_of_the_database(self, worked):
        registry, exposed = worked
        for family in exposed.families.values():
            assert family.samples, family.name
            databases = {x.labels["database"] for x in family.samples}
            assert registry.db_name in databases, family.name

    def test_statements_and_units_of_work(self, exposed):
        reads = {"reason": "usable_replica"}
        assert exposed.value("units_of_work_total", **reads) >= 4
        assert exposed.value("statements_total", server="primary") >= 3
        assert exposed.value("statements_total") > exposed.value(
            "units_of_work_total"
        )

    def test_fallbacks_and_waits(self, exposed):
        labels = {"server": "primary", "reason": "no_fresh_replica"}
        assert exposed.value("fallbacks_total", **labels) >= 1
        assert exposed.value("wait_seconds_count", waited_for="replica") >= 1
        assert 0 < exposed.value("wait_seconds_sum") < 5

    def test_retries_and_errors(self, exposed):
        assert exposed.value("retries_total", cause="connection_lost") >= 1
        assert exposed.value("stale_read_errors_total", model="Model.Book") == 1

    def test_changes(self, exposed):
        labels = {"server": "replica1"}
        for status in ("down", "ready"):
            labels["status"] = status
            assert exposed.value("status_changes_total", **labels) >= 1

        assert exposed.value("promotions_total") == 0

    def test_servers(self, worked):
        exposed = worked[1]
        status = {"server": "replica1"}
        assert exposed.value("server_status", status="ready", **status) == 1
        assert exposed.value("server_status", **status) == 1
        for name in ("primary", "replica1", "replica2"):
            assert exposed.value("wal_position_bytes", server=name) > 2**24
            assert exposed.value("wal_timeline", server=name) >= 1
            assert 0 < exposed.value("latency_seconds", server=name) < 2
            assert 0 <= exposed.value("answer_age_seconds", server=name) < 30
            assert exposed.value("pool_size_connections", server=name) == 5

    def test_no_secret_is_exposed(self, exposed):
        assert "postgres@" not in exposed.text
        assert "127.0.0.1" not in exposed.text

    def test_names_are_of_prometheus_convention(self, exposed):
        """Base units, as https://prometheus.io/docs/practices/naming/ says"""
        units = ("_bytes", "_connections", "_seconds")
        unitless = {"anyblok_engines_server_status"}
        unitless.add("anyblok_engines_wal_timeline")
        for name, family in exposed.families.items():
            if family.type == "counter":
                assert f"{name}_total" in exposed.samples
            else:
                assert name.endswith(units) or name in unitless

            assert not re.search("milli|_ms|count$", name)


class TestRegister:
    @pytest.fixture
    def registry(self, shared_registry):
        return shared_registry

    def test_registry_that_is_registered_twice_is_counted_once(self, registry):
        collectors, others = CollectorRegistry(), CollectorRegistry()
        first = metrics.register(registry, collectors)
        assert metrics.register(registry, collectors) is first
        assert metrics.register(registry, others) is not first
        labels = {"database": registry.db_name}
        before = Exposition(collectors).value("statements_total", **labels)
        read(registry)
        for each in (collectors, others):
            after = Exposition(each).value("statements_total", **labels)
            assert after == before + 1

    def test_what_alerts_is_counted_from_0(self, servers, make_registry):
        """Prometheus sees no increase from nothing to 1"""
        registry = make_registry.replicated(servers)
        collectors = CollectorRegistry()
        metrics.register(registry, collectors)
        exposed = Exposition(collectors)
        for name, values in (("retries", Cause), ("status_changes", Status)):
            found = [
                x.value
                for x in exposed.samples[f"anyblok_engines_{name}_total"]
                if x.labels["database"] == registry.db_name
            ]
            assert len(found) == 3 * len(values)

    def test_threads_lose_no_count(self, registry):
        collectors = CollectorRegistry()
        metrics.register(registry, collectors)
        labels = {"database": registry.db_name}
        before = Exposition(collectors).value("units_of_work_total", **labels)

        def work():
            for _ in range(25):
                read(registry)

            registry.Session.remove()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()

        for thread in threads:
            thread.join()

        after = Exposition(collectors).value("units_of_work_total", **labels)
        assert after == before + 200

    def test_closed_registry_has_no_servers(self, servers, make_registry):
        registry = make_registry.replicated(servers)
        collectors = CollectorRegistry()
        collector = metrics.register(registry, collectors)
        labels = {"database": registry.db_name}
        assert Exposition(collectors).value("server_status", **labels) == 3
        registry.close()
        assert Exposition(collectors).value("server_status", **labels) == 0
        assert registry in collector.registries

    def test_server_that_is_down_has_no_lag(self, servers, make_registry):
        registry = make_registry.replicated(servers, db_ro_check_interval=60)
        collectors = CollectorRegistry()
        metrics.register(registry, collectors)
        registry.monitor.step()
        registry.monitor.report_down("replica1", "the test says so")
        exposed = Exposition(collectors)
        found = {
            x.labels["server"]
            for x in exposed.samples["anyblok_engines_replica_lag_seconds"]
        }
        assert found == {"replica2"}
        labels = {"server": "replica1", "status": "down"}
        assert exposed.value("server_status", **labels) == 1


def count_reads(pipe, registry, number):
    """Read in another process, and say when it is done"""
    metrics.register(registry, CollectorRegistry())
    for _ in range(number):
        read(registry)

    pipe.send(metrics.is_multiprocess())
    pipe.recv()


def test_processes_are_added_up(servers, tmp_path, monkeypatch):
    """As prometheus_client does for gunicorn's workers"""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    options = {
        "db_name": servers.database,
        "db_wo_url": servers.primary_url,
        "db_ro_urls": servers.replica_urls,
    }
    with (
        process(count_reads, options, 3) as first,
        process(count_reads, options, 4) as second,
    ):
        for pipe in (first, second):
            assert pipe.poll(60)
            assert pipe.recv() is True

        collectors = CollectorRegistry()
        MultiProcessCollector(collectors, str(tmp_path))
        exposed = Exposition(collectors)
        for pipe in (first, second):
            pipe.send("done")

    assert exposed.value("units_of_work_total") == 7
    gc.collect()


def children(expression):
    """Give the parts of an expression of PromQL"""
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        part = getattr(expression, name, None)
        if part is not None:
            yield part

    yield from getattr(expression, "args", None) or ()


def parts(expression):
    """Give an expression of PromQL and all that is in it"""
    yield expression
    for part in children(expression):
        yield from parts(part)


def selectors(expression):
    return [
        x
        for x in parts(expression)
        if isinstance(x, promql_parser.VectorSelector)
    ]


def labels_of(part):
    """Return the labels that an aggregation or a comparison names"""
    modifier = getattr(part, "modifier", None)
    if modifier is None:
        return set()

    found = getattr(modifier, "matching", modifier)
    return set(getattr(found, "labels", None) or ())


def dashboard_queries():
    """Give each query of the dashboard, and the text that names its labels"""
    if not DASHBOARD.is_file():
        return

    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m")
            yield pytest.param(
                query,
                re.findall(r"{{(\w+)}}", target["legendFormat"]),
                id=f"{panel['title']}-{target['refId']}",
            )


def alert_queries():
    """Give each query of the alerts, and the labels that its text names"""
    if not ALERTS.is_file():
        return

    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            summary = rule["annotations"]["summary"]
            yield pytest.param(
                rule["expr"],
                re.findall(r"\$labels\.(\w+)", summary),
                id=rule["alert"],
            )


QUERIES = [*dashboard_queries(), *alert_queries()]


@needs_doc
class TestQueries:
    """What Prometheus is asked is what it has got"""

    def test_there_are_some(self):
        assert len(QUERIES) >= 25

    @pytest.mark.parametrize(("query", "shown"), QUERIES)
    def test_names_of_metrics_and_labels_are_real(self, exposed, query, shown):
        expression = promql_parser.parse(query)
        assert selectors(expression)
        for part in parts(expression):
            for selector in selectors(part):
                assert selector.name in exposed.samples
                known = exposed.labels(selector.name)
                assert labels_of(part) <= known
                for matcher in selector.matchers.matchers:
                    assert matcher.name in known

        named = set().union(*map(labels_of, parts(expression)))
        assert set(shown) <= named

    @pytest.mark.parametrize(("query", "shown"), QUERIES)
    def test_values_of_labels_are_real(self, query, shown):
        for selector in selectors(promql_parser.parse(query)):
            for matcher in selector.matchers.matchers:
                if matcher.name == "database":
                    continue

                assert any(
                    re.fullmatch(matcher.value, value)
                    for value in VALUES[matcher.name]
                ), matcher

    def test_dashboard_shows_every_metric(self, exposed):
        shown = {
            selector.name
            for query in dashboard_queries()
            for selector in selectors(promql_parser.parse(query.values[0]))
        }
        missing = [
            family.name
            for family in exposed.families.values()
            if not any(x.name in shown for x in family.samples)
        ]
        assert missing == []

    def test_dashboard_chooses_among_databases_that_there_are(self, exposed):
        variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
        query = next(x["query"] for x in variables if x["name"] == "database")
        name, label = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", query
        ).groups()
        assert label in exposed.labels(name)

    def test_panels_have_places_of_their_own(self):
        places = [
            (x["gridPos"]["x"], x["gridPos"]["y"])
            for x in json.loads(DASHBOARD.read_text())["panels"]
        ]
        assert len(set(places)) == len(places)
