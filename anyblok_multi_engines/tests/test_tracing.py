# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Spans of OpenTelemetry's own instrumentation say which server it was."""

import subprocess
import sys

import pytest
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

HELLO = text("SELECT current_setting('port')")

# It says that it knows SQLAlchemy up to 2.0, and works on 2.1 as well.
ANY_VERSION = {"skip_dep_check": True}


@pytest.fixture
def provider():
    provider = TracerProvider()
    provider.exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(provider.exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def instrumentor(provider):
    instrumentor = SQLAlchemyInstrumentor()
    yield instrumentor
    instrumentor.uninstrument()


@pytest.fixture
def instrumented(instrumentor, provider):
    """Instrument what will be made, though our modules are loaded"""
    instrumentor.instrument(tracer_provider=provider, **ANY_VERSION)


@pytest.fixture
def spans(provider):
    """Give a function that returns what spans say of their servers"""

    def spans(word):
        return [
            (
                span.attributes.get("anyblok.server.name"),
                span.attributes.get("anyblok.server.role"),
            )
            for span in provider.exporter.get_finished_spans()
            if span.name.startswith(word)
        ]

    return spans


@pytest.fixture
def forget(provider):
    return provider.exporter.clear


def test_statement_names_its_server(
    instrumented, servers, make_registry, spans, forget
):
    registry = make_registry.replicated(servers)
    forget()
    name = servers.served_by(registry)
    assert spans("SELECT") == [(name, "replica")]
    forget()
    registry.Book.insert(title="x")
    assert spans("INSERT") == [("primary", "primary")]
    registry.rollback()


def test_many_at_once(instrumented, servers, make_registry, spans):
    registry = make_registry.replicated(servers)
    statement = text("INSERT INTO book (title, copies) VALUES (:title, 0)")
    registry.execute(statement, [{"title": "x"}, {"title": "y"}])
    assert set(spans("INSERT")) == {("primary", "primary")}
    registry.rollback()


def test_statement_that_fails(
    instrumented, servers, make_registry, spans, forget
):
    registry = make_registry.replicated(servers)
    forget()
    with pytest.raises(DBAPIError):
        registry.execute(text("SELECT 1 / (SELECT 0)"))

    ((_, role),) = spans("SELECT")
    assert role == "replica"


def test_connect(instrumented, servers, make_registry, spans, forget):
    registry = make_registry.replicated(servers)
    forget()
    name = servers.served_by(registry)
    assert (name, "replica") in spans("connect")


def test_connect_that_fails(
    instrumented, servers, make_registry, spans, forget
):
    registry = make_registry.replicated(servers)
    registry.monitor.stop()
    for replica in servers.cluster.replicas:
        replica.stop()

    for name in ("replica1", "replica2"):
        registry.engine_of(name).dispose()

    forget()
    assert servers.served_by(registry) == "primary"
    assert {name for name, _ in spans("connect")} == {
        "primary",
        "replica1",
        "replica2",
    }


def test_span_of_the_application_is_left_alone(
    instrumented, provider, servers, make_registry, spans
):
    registry = make_registry.replicated(servers)
    with provider.get_tracer("mine").start_as_current_span("mine"):
        registry.execute(HELLO)

    assert spans("mine") == [(None, None)]


def test_engines_that_are_instrumented_later(
    instrumentor, provider, servers, make_registry, spans
):
    """Their listeners come after ours"""
    registry = make_registry.replicated(servers)
    instrumentor.instrument(
        tracer_provider=provider,
        engines=registry.engines["ro"],
        **ANY_VERSION,
    )
    name = servers.served_by(registry)
    assert (name, "replica") in spans("SELECT")


def test_nothing_of_it_is_imported():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import anyblok_multi_engines.registry, sys;"
            "print([x for x in sys.modules if x.startswith('prometheus')"
            " or x == 'opentelemetry.trace'])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
