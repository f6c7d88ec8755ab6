# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The WSGI application, loaded by gunicorn before it forks its workers

GET /monitor says when the monitor of the worker has asked the first replica.
"""

import json
import os

from . import wsgi


def site(environ, start_response):
    """Show what the monitor knows, or serve books"""
    if environ["PATH_INFO"] != "/monitor":
        return wsgi.site(environ, start_response)

    health = wsgi.registry.health().servers["replica1"]
    start_response("200 OK", [wsgi.JSON])
    return [
        json.dumps(
            {"pid": os.getpid(), "asked_at": health.observation.asked_at}
        ).encode()
    ]


# So its pool has connections that a worker must not use.
with wsgi.unit_of_work(wsgi.registry) as loaded:
    wsgi.find_book(loaded, 0)

os.register_at_fork(
    after_in_child=lambda: print(os.getpid(), "is ready", flush=True)
)
