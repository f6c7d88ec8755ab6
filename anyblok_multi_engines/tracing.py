# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""OpenTelemetry's spans say which server a statement went to.

The package ``opentelemetry-instrumentation-sqlalchemy`` makes a span of each
statement and of each connect. Unless it is imported before the registry is
made, nothing is listened to; nothing of it is imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Engine, event

from .topology import Server

INSTRUMENTATION = "opentelemetry.instrumentation.sqlalchemy"

#: The name of the server: ``primary``, ``replica1``...
SERVER_NAME = "anyblok.server.name"
#: What it is for: ``primary`` or ``replica``
SERVER_ROLE = "anyblok.server.role"


def name_in_spans(engine: Engine, server: Server) -> None:
    """Have the spans of an engine's statements and connects name the server

    :param engine: of the server
    :param server: its name and role
    """
    if INSTRUMENTATION not in sys.modules:
        return

    attributes = {SERVER_NAME: server.name, SERVER_ROLE: server.role.value}

    def name_statement(*about: Any) -> None:
        # The instrumentation puts it there just before: its own listeners of
        # before_cursor_execute may come later than ours.
        span = getattr(about[-1], "_otel_span", None)
        if span is not None:
            span.set_attributes(attributes)

    def name_connect(*_: Any) -> None:
        trace = sys.modules.get("opentelemetry.trace")
        span = None if trace is None else trace.get_current_span()
        scope = getattr(span, "instrumentation_scope", None)
        if span is not None and getattr(scope, "name", "").startswith(
            INSTRUMENTATION
        ):
            span.set_attributes(attributes)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(engine, name, name_statement)

    for name in ("do_connect", "engine_connect"):
        event.listen(engine, name, name_connect)
