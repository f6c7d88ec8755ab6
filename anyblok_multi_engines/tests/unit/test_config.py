# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The options, without a server."""

import traceback
from argparse import ArgumentParser
from contextlib import contextmanager

import pytest
from anyblok.config import Configuration, ConfigurationException, get_db_name
from anyblok.config import get_url as anyblok_get_url
from anyblok.registry import RegistryException
from sqlalchemy.engine import make_url

from anyblok_multi_engines import config
from anyblok_multi_engines.config import complete_options, get_url, topology
from anyblok_multi_engines.errors import NoPrimaryError, OptionError
from anyblok_multi_engines.routing.balancing import Policy
from anyblok_multi_engines.topology import place_of

PRIMARY = "postgresql://one:s3cr3t@p:5432/db"
REPLICA1 = "postgresql://two:s3cr3t@r1:5432/db"
REPLICA2 = "postgresql://two:s3cr3t@r2/db"


def places(**kwargs):
    return [str(server) for server in topology(**kwargs).servers]


class TestGetUrl:
    def test_is_made_of_the_options(self, options):
        options(
            db_driver_name="postgresql",
            db_host="localhost",
            db_name="anyblok",
            db_query="sslmode=require",
        )
        assert get_url() == make_url(
            "postgresql://localhost/anyblok?sslmode=require"
        )
        assert get_url(db_name="other").database == "other"

    def test_keeps_the_url(self, options):
        options()
        url = "postgresql://u:p@h:1/anyblok?application_name=a&sslmode=allow"
        assert get_url(url=url) == make_url(url)

    def test_options_replace_parts_of_the_url(self, options):
        options(db_user_name="jane", db_password="secret", db_name="two")
        url = make_url("postgresql://jane:secret@h:1/two?sslmode=allow")
        assert get_url(url="postgresql://u:p@h:1/one?sslmode=allow") == url
        assert get_url(db_name="three", url="postgresql://h/one") == make_url(
            "postgresql://jane:secret@h/three"
        )

    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    def test_is_the_primary_s_url_by_default(self, options, option):
        options(**{option: PRIMARY})
        assert get_url() == make_url(PRIMARY)

    @pytest.mark.parametrize("replicas", [None, [REPLICA1]])
    def test_without_any_driver(self, options, replicas):
        options(db_ro_urls=replicas)
        with pytest.raises(ConfigurationException):
            get_url()


class TestTopology:
    def test_db_url_takes_its_share_of_the_reads(self, options):
        options(db_url=PRIMARY, db_ro_urls=[REPLICA1, REPLICA2])
        known = topology()
        assert places() == [
            "primary (p:5432)",
            "replica1 (r1:5432)",
            "replica2 (r2)",
        ]
        assert [x.name for x in known.readers] == [
            "primary",
            "replica1",
            "replica2",
        ]

    def test_db_wo_url_takes_no_reads(self, options):
        options(db_wo_url=PRIMARY, db_ro_urls=[REPLICA1])
        assert [x.name for x in topology().readers] == ["replica1"]
        assert not topology().read_only

    def test_driver_name_and_host_name_the_primary(self, options):
        options(
            db_driver_name="postgresql",
            db_host="p",
            db_port=5432,
            db_ro_urls=[REPLICA1],
        )
        assert places() == ["primary (p:5432)", "replica1 (r1:5432)"]

    def test_db_wo_url_is_before_the_driver_name(self, options):
        options(db_driver_name="postgresql", db_host="x", db_wo_url=PRIMARY)
        assert places() == ["primary (p:5432)"]

    def test_only_replicas_is_read_only_mode(self, options):
        options(db_ro_urls=[REPLICA1], db_url="", db_wo_url="")
        assert topology().read_only

    def test_db_name_is_everywhere(self, options):
        options(db_url=PRIMARY, db_ro_urls=[REPLICA1], db_name="one")
        assert {x.url.database for x in topology().servers} == {"one"}
        assert {x.url.database for x in topology("two").servers} == {"two"}

    def test_shows_no_password(self, options):
        options(
            db_url=PRIMARY,
            db_ro_urls=["postgresql:///db?host=h&password=s3cr3t"],
        )
        known = topology()
        assert "s3cr3t" not in repr(known) + str(known)
        assert "replica1 (h)" in str(known.replicas[0])

    def test_a_replica_may_be_the_primary_itself(self, options):
        options(db_url=PRIMARY, db_ro_urls=[PRIMARY])
        assert places() == ["primary (p:5432)", "replica1 (p:5432)"]


SEVERAL = [
    ("postgresql://u@/db?host=a,b&port=1,2", "a:1,b:2"),
    ("postgresql://u@/db?host=a:1&host=b:2", "a:1,b:2"),
    ("postgresql://u@/db?host=a:1&host=b", "a:1,b"),
    ("postgresql://u@/db?host=a,b", "a,b"),
    ("postgresql://u@a,b:5/db", "a:5,b:5"),
    # The query comes before the rest of the URL.
    ("postgresql://u@c:9/db?host=a,b", "a,b"),
    ("postgresql://u@c:9/db?host=a", "a:9"),
    ("postgresql://u@c/db?port=9", "c:9"),
    ("postgresql:///db", "local socket"),
]


class TestSeveralHosts:
    """They are one server"""

    @pytest.mark.parametrize(("url", "place"), SEVERAL)
    @pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
    def test_are_those_of_sqlalchemy(self, url, place, driver):
        parsed = make_url(url).set(drivername=f"postgresql+{driver}")
        assert place_of(parsed) == place
        _, told = parsed.get_dialect()().create_connect_args(parsed)
        hosts = told.get("host", "local socket").split(",")
        ports = str(told.get("port", "")).split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        assert place == ",".join(
            f"{host}:{port}" if port else host
            for host, port in zip(hosts, ports, strict=True)
        )

    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    def test_are_one_server_of_each_option(self, options, option):
        url = SEVERAL[0][0] + "&target_session_attrs=read-write"
        options(**{option: url, "db_ro_urls": SEVERAL[1][0]})
        known = topology()
        assert places() == ["primary (a:1,b:2)", "replica1 (a:1,b:2)"]
        assert known.primary.url == get_url() == make_url(url)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (SEVERAL[0][0], SEVERAL[1][0]),
            ("postgresql://u@/db?host=a,b", "postgresql://u@a,b:5432/db"),
        ],
    )
    def test_are_the_same_in_both_forms(self, options, one, other):
        options(db_wo_url=PRIMARY, db_ro_urls=[one, other])
        with pytest.raises(OptionError, match="same server twice"):
            topology()

    def test_in_another_order_prefer_another(self, options):
        urls = [f"postgresql://u@/db?host={x}" for x in ("a,b", "b,a")]
        options(db_wo_url=PRIMARY, db_ro_urls=urls)
        assert len(topology().replicas) == 2


class TestReplicaUrls:
    @pytest.mark.parametrize(
        "written",
        [
            [REPLICA1, REPLICA2],
            [f"{REPLICA1},{REPLICA2}"],
            ["", REPLICA1, REPLICA2, ""],
            f"{REPLICA1},{REPLICA2}",
            f"{REPLICA1} {REPLICA2}",
            f"{REPLICA1}, {REPLICA2}",
            f"\n{REPLICA1}\n{REPLICA2}\n",
            f"{REPLICA1}\n\n  {REPLICA2}",
        ],
    )
    def test_are_separated(self, options, written):
        options()
        # As a configuration file read without the options' definitions does.
        del Configuration.configuration["db_ro_urls"]
        Configuration.add_argument("db_ro_urls", written, type=None)
        assert config.replica_urls() == [REPLICA1, REPLICA2]

    @pytest.mark.parametrize(
        "written",
        [
            f"{REPLICA1}?host=a:1,b:2,{REPLICA2}",
            f"{REPLICA1}?host=a:1,b:2\n{REPLICA2}",
            [f"{REPLICA1}?host=a:1,b:2", "", REPLICA2, ""],
        ],
    )
    def test_may_hold_a_comma_in_the_query(self, options, written):
        options(db_ro_urls=written)
        assert config.replica_urls() == [f"{REPLICA1}?host=a:1,b:2", REPLICA2]

    def test_may_hold_an_escaped_comma(self, options):
        options(db_ro_urls=f"{REPLICA1}?host=a%2Cb", db_wo_url=PRIMARY)
        assert topology().replicas[0].url.query["host"] == "a,b"

    @pytest.mark.parametrize("nothing", [None, "", [], [""], "\n"])
    def test_may_be_none(self, options, nothing):
        options(db_ro_urls=nothing)
        assert config.replica_urls() == []


class TestWeights:
    @pytest.mark.parametrize(
        "written",
        [
            [9, 0.5],
            ["9", "0.5"],
            ["9,0.5"],
            ["", "9", "0.5"],
            "9 0.5",
            "9,0.5",
            "9, 0.5",
            "\n9\n0.5\n",
        ],
    )
    def test_are_separated(self, options, written):
        options(db_wo_url=PRIMARY, db_ro_urls=[REPLICA1, REPLICA2])
        # As a configuration file read without the options' definitions does.
        with self.undefined("db_ro_weights", written):
            assert [x.weight for x in topology().readers] == [9.0, 0.5]

    @staticmethod
    @contextmanager
    def undefined(name, value):
        before = Configuration.configuration.pop(name)
        Configuration.add_argument(name, value, type=None)
        yield
        Configuration.configuration[name] = before

    def test_of_one_replica_may_be_a_number(self, options):
        options(db_wo_url=PRIMARY, db_ro_urls=[REPLICA1])
        with self.undefined("db_ro_weights", 2):
            assert [x.weight for x in topology().readers] == [2.0]

    @pytest.mark.parametrize(
        ("values", "written", "weights"),
        [
            ({"db_url": PRIMARY}, None, [1.0, 1.0, 1.0]),
            ({"db_url": PRIMARY}, ["9", "2"], [1.0, 9.0, 2.0]),
            ({"db_url": PRIMARY}, ["9", "2", "0"], [0.0, 9.0, 2.0]),
            ({"db_wo_url": PRIMARY}, ["0", "2"], [0.0, 2.0]),
            ({}, ["9", "2"], [9.0, 2.0]),
            (
                {"db_driver_name": "postgresql", "db_host": "p"},
                ["9", "2", "3"],
                [3.0, 9.0, 2.0],
            ),
        ],
    )
    def test_are_those_of_the_servers_that_take_reads(
        self, options, values, written, weights
    ):
        options(
            db_ro_urls=[REPLICA1, REPLICA2], db_ro_weights=written, **values
        )
        assert [x.weight for x in topology().readers] == weights

    @pytest.mark.parametrize(
        ("values", "written", "message"),
        [
            ({}, ["1"], "1 of them, and 2 in --db-ro-urls; write one per URL"),
            ({}, ["1", "1", "1"], "3 of them, and 2"),
            ({"db_wo_url": PRIMARY}, ["1", "1", "1"], "3 of them, and 2"),
            ({"db_url": PRIMARY}, ["1"], "and one more for the primary"),
            ({"db_url": PRIMARY}, ["1"] * 4, "4 of them, and 2"),
            ({}, ["0", "0.0"], "all are 0"),
            ({"db_url": PRIMARY}, ["0", "0"], "all are 0"),
            ({}, ["-1", "1"], "'-1'; write numbers, 0 or more"),
            ({}, ["x", "1"], "'x'; write numbers"),
            ({}, ["nan", "1"], "'nan'; write numbers"),
            ({}, ["inf", "1"], "'inf'; write numbers"),
        ],
    )
    def test_others_are_errors(self, options, values, written, message):
        options(
            db_ro_urls=[REPLICA1, REPLICA2], db_ro_weights=written, **values
        )
        with pytest.raises(OptionError, match="--db-ro-weights") as caught:
            topology()

        assert message in str(caught.value)

    def test_are_read_from_the_command_line(self):
        parser = ArgumentParser()
        config.update_database(parser)
        found = parser.parse_args(["--db-ro-weights", "-1", "0.5"])
        assert found.db_ro_weights == ["-1", "0.5"]


class TestPolicy:
    def test_is_random_by_default(self, options):
        options()
        assert config.policy() is Policy.RANDOM

    @pytest.mark.parametrize("policy", Policy)
    def test_is_a_word(self, options, policy):
        options(db_ro_policy=policy.value)
        assert config.policy() is policy

    def test_of_another_word_is_an_error(self, options):
        options(db_ro_policy="fastest")
        with pytest.raises(OptionError, match="--db-ro-policy: 'fastest'"):
            config.policy()


BAD = [
    ({"db_url": PRIMARY, "db_wo_url": PRIMARY}, "--db-url and --db-wo-url"),
    ({"db_url": "s3cr3t"}, "--db-url: not an URL"),
    ({"db_url": "postgresql://u:s3cr3t@h:port/db"}, "--db-url: not an URL"),
    ({"db_wo_url": "s3cr3t@h/db"}, "--db-wo-url: not an URL"),
    ({"db_wo_url": "postgresql://u:p@s3cr3t@h/db"}, "with %40 for an @"),
    (
        {"db_url": PRIMARY, "db_ro_urls": [REPLICA1, "s3cr3t"]},
        "--db-ro-urls, URL number 2: not an URL",
    ),
    (
        {"db_url": PRIMARY, "db_ro_urls": f"{REPLICA1},s3cr3t"},
        "--db-ro-urls, URL number 2: not an URL",
    ),
    (
        {"db_url": PRIMARY, "db_ro_urls": ["s3cr3t", REPLICA1]},
        "--db-ro-urls, URL number 1: not an URL",
    ),
    (
        {"db_url": PRIMARY, "db_ro_urls": ["mysql://u:s3cr3t@h/db"]},
        "replica1 (h) of --db-ro-urls is mysql",
    ),
    (
        {"db_url": PRIMARY, "db_ro_urls": [REPLICA1, REPLICA1]},
        "the same server twice: replica1 (r1:5432) and replica2",
    ),
    (
        {
            "db_url": PRIMARY,
            "db_ro_urls": [REPLICA2, f"{REPLICA2[:-3]}:5432/db"],
        },
        "the same server twice",
    ),
    (
        {"db_url": "postgresql://u:s3cr3t@a:1,b:2/db"},
        "?host=a:1&host=b:2",
    ),
    (
        {"db_wo_url": "postgresql://u:s3cr3t@/db?host=a,b&port=1,2,3"},
        "--db-wo-url: number of hosts and ports don't match",
    ),
    (
        {"db_ro_urls": ["postgresql://u:s3cr3t@/db?host=a:1&host=b:2&port=3"]},
        "--db-ro-urls, URL number 1: Can't mix 'multihost' formats",
    ),
    ({}, "give --db-url"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_input_is_named_without_its_password(options, values, message):
    options(**values)
    with pytest.raises(OptionError) as caught:
        topology("db")

    assert message in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown
    assert isinstance(caught.value, RegistryException)
    assert isinstance(caught.value, ConfigurationException)


class TestCompletion:
    """AnyBlok's own functions know only db_url and db_name"""

    def test_leaves_alone_what_has_none_of_our_options(self, options):
        options.completed(db_url=PRIMARY)
        assert Configuration.get("db_name") is None
        assert Configuration.get("db_url") == PRIMARY

    @pytest.mark.parametrize(
        "values",
        [
            {"db_url": PRIMARY, "db_ro_urls": [REPLICA1]},
            {"db_wo_url": PRIMARY, "db_ro_urls": [REPLICA1]},
            {"db_wo_url": PRIMARY},
        ],
    )
    def test_tells_the_primary(self, options, values):
        options.completed(**values)
        assert get_db_name() == Configuration.get("db_name") == "db"
        assert anyblok_get_url() == get_url() == make_url(PRIMARY)
        assert topology().primary.url == make_url(PRIMARY)

    def test_tells_the_name_in_read_only_mode(self, options):
        options.completed(db_ro_urls=[REPLICA1])
        assert get_db_name() == Configuration.get("db_name") == "db"
        assert topology().read_only

    def test_keeps_the_name_that_was_given(self, options):
        options.completed(db_wo_url=PRIMARY, db_name="other")
        assert Configuration.get("db_name") == "other"
        assert anyblok_get_url().database == "other"

    def test_may_be_done_twice(self, options):
        options.completed(db_wo_url=PRIMARY)
        complete_options()
        assert topology().primary.option == "--db-wo-url"

    def test_survives_a_copy_of_the_option(self, options):
        """AnyBlok's tests save and restore the values"""
        options.completed(db_wo_url=PRIMARY)
        Configuration.update(db_url=Configuration.get("db_url"))
        assert topology().primary.option == "--db-wo-url"

    def test_refuses_bad_input_before_anything_is_written(self, options):
        with pytest.raises(OptionError, match="not both"):
            options.completed(db_url=PRIMARY, db_wo_url=PRIMARY)

    def test_refuses_to_create_a_database_without_a_primary(self, options):
        options(db_ro_urls=[REPLICA1])
        with pytest.raises(NoPrimaryError, match="--db-url or --db-wo-url"):
            complete_options(unittest=False)
