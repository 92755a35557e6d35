"""What ``fencer demo`` shows: real processes on a real server, and a judgement of what was seen.

`story` plays it, `worker` is the program of its processes, `judge` compares what was observed with
what is promised. Nothing here prints: `fencer.cli.demo` does.
"""
