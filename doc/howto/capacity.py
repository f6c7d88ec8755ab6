# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The formulas of doc/howto/capacity.rst."""

# The monitor's, and one for questions aside.
OWN = 2


def connections(processes, pool_size=5, max_overflow=10):
    """Return how many to a server are kept, and how many there may be"""
    kept = processes * (pool_size + OWN)
    return kept, kept + processes * max_overflow


def load(reads, writes, replicas, served, replay=1.0):
    """Return how busy the primary is, and each replica

    As parts of what one server can do: 1.0 is all of it.
    """
    primary = writes + (1 - served) * reads
    return primary, replay * writes + served * reads / replicas


def shares(weights):
    """Return each replica's part of the reads"""
    return [weight / sum(weights) for weight in weights]
