"""Lists the fixtures that are used in this folder alone."""

from tests.durability.power import Power, fsync_shim, make_power
from tests.fix_replicas import _started_group, group, shared_group

__all__ = ["Power", "_started_group", "fsync_shim", "group", "make_power", "shared_group"]
