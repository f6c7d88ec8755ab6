# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What can go wrong with a cluster of servers."""


class ClusterError(RuntimeError):
    """A server or one of PostgreSQL's programs did not do as it was told."""


class BinariesNotFound(ClusterError):
    """No directory with PostgreSQL's programs was found."""


class PortTaken(ClusterError):
    """Somebody else listens on the port that the server was given."""
