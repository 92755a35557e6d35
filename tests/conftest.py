"""Lists the fixtures, which live in one module per subject."""

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_sentinel",
    "tests.fix_api",
    "tests.fix_cluster",
    "tests.fix_sql",
    "tests.fix_s3",
    "tests.faults.clock",
    "tests.faults.planted",
    "tests.faults.history",
]
