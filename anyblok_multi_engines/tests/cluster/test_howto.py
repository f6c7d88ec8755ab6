# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of the documentation does what the page says."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "doc" / "howto" / "testing.rst"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is elsewhere")
def test_code_of_the_howto(tmp_path: Path) -> None:
    blocks = re.findall(
        r"\.\. code-block:: python\n   :caption: (\S+)\n\n((?:   .*\n|\n)+)",
        PAGE.read_text(),
    )
    assert len(blocks) == 6
    for name, code in blocks:
        (tmp_path / name).write_text(textwrap.dedent(code))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error"),
            *("-p", "no:cacheprovider", "-o", "anyblok_bloks=anyblok-core"),
            *("--rootdir", tmp_path, tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "\n7 passed" in run.stdout, run.stdout + run.stderr
