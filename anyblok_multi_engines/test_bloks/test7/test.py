# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok import Declarations
from anyblok.column import Integer, String

register = Declarations.register
Model = Declarations.Model


@register(Model, db_ro_max_staleness=300)
class Country:
    """Reference data: it may be minutes old"""

    code = String(primary_key=True)


@register(Model)
class Stock:
    """It may not be old"""

    db_ro_max_staleness = 0.0

    id = Integer(primary_key=True)
    quantity = Integer(default=0)
