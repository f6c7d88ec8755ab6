# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Run a server, and end it and its workers when the standard input ends.

So nothing is left behind, whatever ends the process that runs the tests::

    python serve.py LISTENING_SOCKET COMMAND...
"""

import os
import signal
import subprocess
import sys

subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, close_fds=False)
# It is the server's alone: where the server has died, nobody answers.
os.close(int(sys.argv[1]))
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
