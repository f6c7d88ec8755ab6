# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Positions in the write-ahead log, and the tokens that carry them.

A position is comparable with another of the same cluster and the same
timeline alone: a promotion begins a timeline, and what the old primary wrote
after the fork isn't in it. Where the fork is, an ordinary role can't ask.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2s
from typing import NamedTuple

from .errors import ConsistencyTokenError

# What stands before the first record of a WAL page, in bytes: PostgreSQL's
# SizeOfXLogShortPHD and, for the first page of a segment, SizeOfXLogLongPHD.
SHORT_HEADER = 24
LONG_HEADER = 40

#: Longer than any token: what is longer isn't even decoded.
MAX_TOKEN_LENGTH = 64

# A kind, what it says, and a checksum, which finds what was cut off or typed;
# it is no signature.
_POSITION = struct.Struct(">cQIQ")
_TIME = struct.Struct(">cQ")
_POSITION_KIND = b"\x01"
_TIME_KIND = b"\x02"
_CHECKSUM_SIZE = 3


class Consistency(StrEnum):
    """What a session's reads see at least; of ``--db-ro-consistency``"""

    EVENTUAL = "eventual"  #: nothing is promised
    SESSION = "session"  #: what it has committed, and nothing older than seen
    REGISTRY = "registry"  #: and what any session of the process committed
    STRONG = "strong"  #: and what any process had committed before


class FreshnessOptions(NamedTuple):
    """What the readers of a registry want to see

    :param consistency: of all sessions
    :param max_staleness: seconds that a replica may be behind the primary;
        None: any number
    :param sticky: seconds that a session which has written reads from the
        primary, where the servers give no positions
    :param wait: seconds that a read waits for a replica at most
    """

    consistency: Consistency = Consistency.SESSION
    max_staleness: float | None = None
    sticky: float = 5.0
    wait: float = 0.01


def parse_lsn(text: str) -> int:
    """Return the bytes of a position that PostgreSQL wrote

    :param text: such as ``0/3000148``
    :exception: ValueError
    """
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(lsn: int) -> str:
    """Return a position as PostgreSQL writes it

    :param lsn: bytes
    """
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def end_of_record(insert_lsn: int, offset: int, page_size: int) -> int:
    """Return where the last record ends, from where the next one will begin

    Where the last one ends with its page, ``pg_current_wal_insert_lsn()`` is
    behind the header of the next page, which is written with the next record:
    no replica gets there while the primary is idle.

    :param insert_lsn: bytes
    :param offset: of the position in its WAL segment, bytes
    :param page_size: PostgreSQL's ``wal_block_size``, bytes
    """
    header = LONG_HEADER if offset < page_size else SHORT_HEADER
    return insert_lsn - header if offset % page_size == header else insert_lsn


@dataclass(frozen=True)
class ConsistencyToken:
    """A position in the log of one cluster

    :param system_id: PostgreSQL's system identifier of the cluster
    :param timeline: of the position
    :param lsn: bytes
    """

    system_id: int
    timeline: int
    lsn: int

    def __str__(self) -> str:
        """Return the token: letters, digits, ``-`` and ``_``"""
        return _encoded(
            _POSITION.pack(
                _POSITION_KIND, self.system_id, self.timeline, self.lsn
            )
        )

    def __repr__(self) -> str:
        """Return it for a person"""
        return (
            f"<{format_lsn(self.lsn)} of timeline {self.timeline}, "
            f"system {self.system_id}>"
        )

    def is_reached_by(self, position: ConsistencyToken | None) -> bool:
        """Return True where a server at a position has all before this one

        :param position: of the server; None: unknown
        :rtype: False where they can't be compared
        """
        return (
            position is not None
            and position.lsn >= self.lsn
            and position.timeline == self.timeline
            and position.system_id == self.system_id
        )

    def can_be_reached_from(self, position: ConsistencyToken) -> bool:
        """Return True where a server at a position may get here, in time

        It may follow to a later timeline, and never back to an earlier one.

        :param position: of the server
        """
        return (
            position.system_id == self.system_id
            and position.timeline <= self.timeline
        )

    def is_behind(self, other: ConsistencyToken) -> bool:
        """Return True where what a server at the other has is more

        A later timeline's position is behind its fork: it has what is left of
        the earlier ones.

        :param other: of the same cluster
        """
        mine, its = (self.timeline, self.lsn), (other.timeline, other.lsn)
        return mine < its


class TimeToken(NamedTuple):
    """Until when the primary alone will do, where there are no positions

    :param until: seconds of ``time.time()``
    """

    until: float

    def __str__(self) -> str:
        """Return the token: letters, digits, ``-`` and ``_``"""
        return _encoded(_TIME.pack(_TIME_KIND, round(self.until * 1000)))


Token = ConsistencyToken | TimeToken


def freshest(
    one: ConsistencyToken | None, other: ConsistencyToken | None
) -> ConsistencyToken | None:
    """Return the position that has what both have

    :param one: of one cluster; None: nothing is asked for
    :param other: of the same cluster
    """
    if one is None or other is None:
        return one or other

    return other if one.is_behind(other) else one


def decode(text: str) -> Token:
    """Return what a token says

    :param text: of ``consistency_token()``
    :exception: ConsistencyTokenError, for anything else
    """
    data = _decoded(text)
    kind = data[:1]
    if kind == _POSITION_KIND and len(data) == _POSITION.size:
        return ConsistencyToken(*_POSITION.unpack(data)[1:])

    if kind == _TIME_KIND and len(data) == _TIME.size:
        return TimeToken(_TIME.unpack(data)[1] / 1000)

    raise _not_a_token()


def _encoded(data: bytes) -> str:
    whole = data + _checksum(data)
    return urlsafe_b64encode(whole).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TOKEN_LENGTH:
        raise _not_a_token()

    try:
        whole = urlsafe_b64decode(text.encode("ascii") + b"==")
    except ValueError:
        raise _not_a_token() from None

    data, checksum = whole[:-_CHECKSUM_SIZE], whole[-_CHECKSUM_SIZE:]
    if checksum != _checksum(data) or _encoded(data) != text:
        raise _not_a_token()

    return data


def _checksum(data: bytes) -> bytes:
    return blake2s(data, digest_size=_CHECKSUM_SIZE).digest()


def _not_a_token() -> ConsistencyTokenError:
    return ConsistencyTokenError(
        "Not a token of registry.consistency_token(): pass on what it gave, "
        "whole and unchanged"
    )
