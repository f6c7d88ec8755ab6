# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Sphinx's configuration: ``make doc``."""

import logging
from importlib import metadata

# The theme's package makes every logger talk at INFO; autodoc imports AnyBlok,
# and so Alembic, which does.
logging.getLogger("alembic").setLevel(logging.WARNING)

project = "AnyBlok Multi Engines"
release = metadata.version("anyblok_multi_engines")

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []
