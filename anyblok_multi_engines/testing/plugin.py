# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Pytest's entry point: fixtures, and ``--anyblok-replicas``

It imports neither AnyBlok nor SQLAlchemy before somebody asks for them.
"""

from __future__ import annotations

from random import randrange

import pytest

# Imported once, however many ask for it.
pytest_plugins = ["anyblok_multi_engines.testing.fixtures"]

MODES = ("lagging", "readonly", "random")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the options

    :param parser: pytest's
    """
    group = parser.getgroup("anyblok", "AnyBlok on a primary and its replicas")
    group.addoption(
        "--anyblok-replicas",
        choices=MODES,
        help="Send to a real replica what production would send there, and "
        "report the lines that would break: replicas that refuse writes "
        "(readonly), that are late as well (lagging), and whose late answers "
        "the application is given (random).",
    )
    group.addoption(
        "--anyblok-replicas-seed",
        type=int,
        help="Of --anyblok-replicas random; default: another one each time, "
        "told in the report.",
    )
    group.addoption(
        "--anyblok-replicas-exit-zero",
        action="store_true",
        help="Report the lines, and let the tests alone decide on the exit "
        "status.",
    )
    parser.addini(
        "anyblok_bloks",
        "Bloks that a database on the cluster has; default: those of the "
        "database that AnyBlok's options name",
        type="args",
    )
    parser.addini(
        "anyblok_cluster_replicas", "Replicas of the cluster", default="2"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin, where ``--anyblok-replicas`` is given

    :param config: pytest's
    """
    if config.option.anyblok_replicas is None:
        return

    from .rehearsal import Rehearsal

    if config.option.anyblok_replicas_seed is None:
        # Before the workers of xdist are given the options.
        config.option.anyblok_replicas_seed = randrange(10**6)

    config.pluginmanager.register(Rehearsal(config), "anyblok_replicas_run")
