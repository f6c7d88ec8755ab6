# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The model; AnyBlok imports it when it loads the blok."""

from anyblok import Declarations
from anyblok.column import Integer, String
from sqlalchemy import text


@Declarations.register(Declarations.Model)  # type: ignore[untyped-decorator,unused-ignore]
class Book:
    """A book, stamped by the server that wrote its row"""

    id = Integer(primary_key=True)
    title = String(nullable=False)
    # The default is worked out by the server: no one else knows better where
    # the INSERT has run.
    written_by = String(
        nullable=False, server_default=text("current_setting('port')")
    )
