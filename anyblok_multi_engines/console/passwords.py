# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""No password is shown, whoever wrote the message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from anyblok.config import Configuration
from sqlalchemy.engine import URL

from .. import config
from ..errors import MultiEnginesException

SECRET_PARAMETERS = ("password", "sslpassword")


def hidden(text: str) -> str:
    """Return a message without the passwords of the options

    A driver's message may repeat what it was given.

    :param text: of an error
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")

    # What our own messages tell to write stays.
    return re.sub(r"//(?!user:password@)[^\s/@]*:[^\s/]*@", "//***@", text)


def _secrets() -> Iterator[str]:
    """Yield the passwords, in the forms in which an URL has them, too"""
    given = [Configuration.get("db_password", None)]
    try:
        for server in config.topology().servers:
            given += _of_url(server.url)
    except (MultiEnginesException, LookupError):
        # The options are what is wrong.
        pass

    for secret in filter(None, given):
        yield from (str(secret), quote(str(secret)), quote_plus(str(secret)))


def _of_url(url: URL) -> Iterator[str | None]:
    yield url.password
    for name in SECRET_PARAMETERS:
        value = url.query.get(name)
        yield from [value] if isinstance(value, str) else value or ()
