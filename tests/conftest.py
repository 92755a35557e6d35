"""Lists the fixtures, which live in one module per subject."""

pytest_plugins = ["tests.fix_servers", "tests.fix_api", "tests.faults.clock"]
