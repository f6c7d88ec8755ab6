# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok import Declarations


@Declarations.register(Declarations.Core)
class Session:
    def test_the_session_is_updated(self):
        return True

    def get_bind(self, *args, **kwargs):
        """Count, and let the others decide"""
        self.asked = getattr(self, "asked", 0) + 1
        return super().get_bind(*args, **kwargs)
