# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The options and the bloks, as AnyBlok's own tests load them."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from anyblok import (
    configuration_post_load,
    load_init_function_from_entry_points,
)
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import RegistryManager

pytest_plugins = ["anyblok_multi_engines.testing.fixtures"]

# What "postgresql" means depends on SQLAlchemy; the Makefile runs both.
DRIVER = os.environ.get("ANYBLOK_TEST_DRIVER", "postgresql+psycopg2")

NO_OPTIONS: dict[str, Any] = {
    "db_driver_name": None,
    "db_host": None,
    "db_name": None,
    "db_password": None,
    "db_port": None,
    "db_query": None,
    "db_ro_urls": None,
    "db_url": None,
    "db_user_name": None,
    "db_wo_url": None,
    "isolation_level": "READ_COMMITTED",
}


class Options:
    """AnyBlok's options, for one test"""

    def __call__(self, **values: Any) -> None:
        """Set options; what isn't named is as if it were not given"""
        Configuration.update(**{**NO_OPTIONS, **values})

    def completed(self, **values: Any) -> None:
        """Set options as the commands do, with our completion of them"""
        self(**values)
        configuration_post_load(unittest=True)


@pytest.fixture(scope="session")
def anyblok_configuration() -> None:
    """Load the options' definitions once"""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        load_init_function_from_entry_points(unittest=True)
        Configuration.load_config_for_test()
    finally:
        sys.argv = argv


@pytest.fixture
def options(anyblok_configuration: None) -> Iterator[Options]:
    """Give the options, without any of the database's at first"""
    before = dict(Configuration.configuration)
    values = {
        name: option.value
        for name, option in before.items()
        if not option.removed
    }
    Configuration.update(**NO_OPTIONS)
    yield Options()
    Configuration.configuration = before
    Configuration.update(**values)


@pytest.fixture(scope="session")
def bloks(anyblok_configuration: None) -> Iterator[None]:
    """Load AnyBlok's bloks and those of the tests"""
    BlokManager.load(entry_points=("bloks", "test_bloks"))
    yield
    RegistryManager.clear()
    BlokManager.unload()
