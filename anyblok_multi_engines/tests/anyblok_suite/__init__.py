# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""AnyBlok's own test suite, without and with the plugin, test by test.

``python -m anyblok_multi_engines.tests.anyblok_suite`` runs the tests that
AnyBlok's wheel carries on a real primary and its streaming standby, on each
SQLAlchemy that AnyBlok is tried on, and fails when a test that passes
without the plugin does not pass with it.

``outcomes``
    what a run gave, and how two runs differ: values only
``recorder``, ``facts``
    run inside the environment under test: pytest's outcomes, versions
``environments``
    the virtual environments that a run needs
``suite``
    the steps of one run
``report``
    the list of differences and the table at the end
"""
