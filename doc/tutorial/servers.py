# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A primary and two streaming replicas, for as long as this Python runs."""

from anyblok_multi_engines.testing import Cluster

cluster = Cluster(replicas=2)
cluster.start()
primary, (replica1, replica2) = cluster.primary, cluster.replicas

print("export PRIMARY=" + primary.url("library"))
print("export REPLICA1=" + replica1.url("library"))
print("export REPLICA2=" + replica2.url("library"))
