# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a worker of jobs.rst does before it takes jobs."""

import sys

import anyblok

# Dramatiq has read its arguments; these are AnyBlok's.
sys.argv[1:] = ["-c", "app.cfg"]
anyblok.start("default")
