# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which server runs what; for ``anyblok_interpreter --script``."""

from collections import Counter

from sqlalchemy import func, select

registry = anyblok_registry  # noqa: F821 - anyblok_interpreter gives it
Parameter = registry.System.Parameter

# A server that is asked for its port says who it is.
who = select(func.current_setting("port"))

# Ten units of work that only read.
reads = Counter()
for _ in range(10):
    reads[registry.execute(who).scalar()] += 1
    registry.rollback()

print("Ten reads:", dict(reads))

# One row: the parameter, and the server that gives it.
number = select(Parameter.value, func.current_setting("port")).where(
    Parameter.key == "number"
)

# One unit of work that reads, writes, and reads again.
print("Read by", registry.execute(who).scalar())
Parameter.set("number", Parameter.get("number", 0) + 1)
value, port = registry.execute(number).one()
print("Wrote number", value["value"], "and read it by", port)
registry.commit()

# The next unit of work.
value, port = registry.execute(number).one()
print("Next, number", value["value"], "read by", port)
registry.rollback()

print("A SELECT:", registry.explain(who))
print("A text:", registry.explain("SELECT key FROM system_parameter"))
print("A number:", registry.explain("SELECT nextval('numbers')"))
