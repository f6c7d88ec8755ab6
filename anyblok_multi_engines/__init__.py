# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Several engines, one primary and its replicas, for one AnyBlok registry."""


def anyblok_config(unittest: bool = False) -> None:
    """Declare the options; AnyBlok calls it from ``anyblok.init``.

    :param unittest: True when AnyBlok's test helpers do the loading
    """
    from . import config  # noqa: F401
