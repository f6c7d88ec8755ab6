# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What goes wrong, as types. A leaf exists where a caller may catch it."""

from anyblok.config import ConfigurationException
from anyblok.registry import RegistryException


class MultiEnginesException(RegistryException):
    """Base of the errors of this package"""


class OptionError(MultiEnginesException, ConfigurationException):
    """An option is wrong; the message names it and says what to write"""


class NoPrimaryError(MultiEnginesException):
    """A write was asked of a registry that only knows replicas"""


class NoReplicaError(MultiEnginesException):
    """A replica was asked of a registry that has none"""


class ServerUnavailableError(MultiEnginesException):
    """A server did not answer where nothing else could take its place"""
