# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok.blok import Blok


class Test7Blok(Blok):
    """Has models whose rows may be of different ages"""

    version = "1.0.0"
    required = ["anyblok-core"]  # noqa: RUF012

    @classmethod
    def import_declaration_module(cls):
        from . import test  # noqa: F401

    @classmethod
    def reload_declaration_module(cls, reload):
        from . import test

        reload(test)
