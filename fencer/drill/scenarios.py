"""The scenarios: what is done to whom, and what is then waited for.

Each is a short function over a `Stage`, and measures what the table shows. What must hold beside
that, `fencer.drill.judge` decides from the record. After each, the stage ends every fault and waits
until somebody leads again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from fencer.drill.stage import NotSeen, Settings, Stage
from fencer.embedded import Persistence

HANDOVER = 0.1
"""Seconds within which a hand-over is expected, processes that are scheduled late included."""


def graceful(stage: Stage) -> None:
    """The leader is asked to stop (SIGTERM)."""
    leader = stage.gather()
    asked = stage.terminate(leader)
    elected = stage.new_leader(asked)
    stage.event("stopped", asked, f"{leader} to stop", leader)
    stage.figures.append(elected.begun - asked)
    stage.expect(1, asked)


def crash(stage: Stage) -> None:
    """The leader is killed (SIGKILL)."""
    killed = stage.kill(stage.gather())
    stage.figures.append(stage.new_leader(killed).begun - killed)
    stage.expect(1, killed)


def cascade(stage: Stage) -> None:
    """The leaders of 4 instances are asked to stop in turn, until one is left."""
    leader = stage.gather(4)
    begun = time.monotonic()
    took = 0.0
    for _ in range(3):
        asked = stage.terminate(leader)
        elected = stage.new_leader(asked)
        took += elected.begun - asked
        leader = elected.who
    stage.figures.append(took)
    stage.expect(3, begun)


def rejoin(stage: Stage) -> None:
    """A leader that was stopped comes back."""
    old = stage.gather()
    asked = stage.terminate(old)
    new = stage.new_leader(asked).who
    stage.event("stopped", asked, f"{old} to stop", old)
    back = stage.start(old)
    started = stage.event("started", back, f"{old} to start", old, limit=30.0)
    followed = stage.follows(old, back)
    if "Another instance is the leader" not in stage.log_of(old):
        raise NotSeen(f"{old} did not log 'Another instance is the leader'")
    stage.figures.append(followed.begun - started.begun)
    stage.pause(stage.settings.ttl / 2, "a change of leader that must not come")
    stage.expect(0, back)
    stage.works(new, followed.begun)


def partition(stage: Stage, *, refuse: bool = False) -> None:
    """The leader is cut off from the server, without a word."""
    leader = stage.gather()
    cut = stage.cut(leader, refuse=refuse)
    elected = stage.new_leader(cut)
    stage.event("lost", cut, f"{leader} to notice", leader)
    stage.figures.append(elected.begun - cut)
    mended = stage.mend(leader)
    stage.follows(leader, mended)
    stage.expect(1, cut)


def partition_refused(stage: Stage) -> None:
    """The leader is cut off from the server, which refuses its connections."""
    partition(stage, refuse=True)


def last_standing(stage: Stage) -> None:
    """All but one are killed at once, the leader too."""
    leader = stage.gather()
    last = stage.others(leader)[-1]
    killed = stage.kill(leader, *stage.others(leader, last))
    stage.figures.append(stage.new_leader(killed).begun - killed)
    stage.expect(1, killed)


def server_down(stage: Stage) -> None:
    """The server is stopped until the leader has noticed, and started with its data."""
    leader = stage.gather()
    stopped = stage.stop_server()
    stage.event("lost", stopped, f"{leader} to step down", leader)
    stage.expect(0, stopped)
    back = stage.start_server()
    stage.figures.append(stage.new_leader(back).begun - back)
    stage.expect(1, back)


def pause(stage: Stage) -> None:
    """The leader is stopped in the middle of its job (SIGSTOP), and goes on after its ttl."""
    leader = stage.gather()
    stage.works(leader, time.monotonic())
    stage.pause(stage.settings.every / 2, f"{leader} to be in the middle of its next job")
    frozen = stage.freeze(leader)
    stage.figures.append(stage.new_leader(frozen).begun - frozen)
    thawed = stage.thaw(leader)
    stage.event("job", 0.0, f"the guard to refuse {leader}", leader, outcome="refused")
    stage.follows(leader, thawed)
    stage.expect(1, frozen)


def skew(stage: Stage) -> None:
    """The server's clock jumps forward, then back by twice as much, and the leader is killed."""
    ttl = stage.settings.ttl
    stage.gather()
    stage.forgets = True
    # Meanwhile the lock key is gone, and every token is minted by a clock that is ahead.
    stage.jump(10 * ttl)
    stage.pause(0.6 * ttl, "the leader to renew")
    leader = stage.leader()
    stage.works(leader, time.monotonic())
    # The lock key of the dead leader now seems to last for more than 20 ttls.
    stage.gap += ttl
    stage.jump(-20 * ttl)
    killed = stage.kill(leader)
    stage.figures.append(stage.new_leader(killed).begun - killed)
    stage.expect(1, killed)


def data_loss(stage: Stage) -> None:
    """The server is killed, and started empty."""
    stage.gather()
    stage.forgets = True
    stage.stop_server(kill=True)
    back = stage.start_server()
    stage.figures.append(stage.new_leader(back).begun - back)
    # A leader that was told last of all may only now notice that it is none.
    stage.pause(stage.settings.ttl / 2, "the old leader to notice")
    stage.expect(1, back)


def chaos(stage: Stage) -> None:
    """Instances are killed, stopped, cut off and started at random, most often the leader."""
    settings, dice = stage.settings, random.Random(stage.settings.seed)
    stage.gather(max(5, settings.instances))
    # Two are always left unharmed. Of the others, all but the leader may wait in line and be
    # silent, and each of these is handed the lease in vain, for a short time.
    stage.gap += (len(stage.running) - 3) * min(IN_VAIN, settings.ttl)
    mends: list[tuple[float, Mend, str]] = []
    until = time.monotonic() + settings.duration
    while (left := until - time.monotonic()) > 0:
        for due in [each for each in mends if each[0] <= time.monotonic()]:
            mends.remove(due)
            due[1](stage, due[2])
        well = [name for name in stage.ready if name not in {name for _, _, name in mends}]
        leader = stage.leads
        # Each change is to have its chance: while nobody leads, nobody else is harmed.
        if len(well) > 2 and leader is not None:
            victim = leader if leader in well and dice.random() < 0.6 else dice.choice(well)
            harm, mend = dice.choice(_HARMS)
            harm(stage, victim)
            mends.append((time.monotonic() + dice.uniform(0.2, 2.5) * settings.ttl, mend, victim))
        stage.pause(
            min(left, dice.uniform(0.1, 0.9) * settings.ttl),
            f"{left:.0f} s of chaos to pass (seed {settings.seed})",
        )
    for _, mend, name in mends:
        mend(stage, name)
    stage.heal()
    stage.figures += [ended - begun for begun, ended in stage.record().gaps()][1:]


IN_VAIN = 1.0
"""Seconds for which a name that is freed belongs to the first in line, who must claim it by then:
``CLAIM_MS`` in the scripts."""

Mend = Callable[[Stage, str], object]
_HARMS: tuple[tuple[Mend, Mend], ...] = (
    (Stage.kill, Stage.start),
    (Stage.terminate, Stage.start_again),
    (Stage.freeze, Stage.thaw),
    (Stage.cut, Stage.mend),
    (lambda stage, name: stage.cut(name, refuse=True), Stage.mend),
)


Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, and what is known of it before it is played.

    Attributes:
        name: as on the command line.
        play: plays it.
        measured: what its figures are.
        ours: between what they are expected, in seconds.
        old: what the old system took, in seconds, at a ttl of 5 s and of 10 s; ``None`` if it was
            not measured.
        takes: about how many ttls it lasts, and how many seconds beside that.
        persistence: of its server.
        harms_server: whether it needs a server of its own.
        shifts_clock: whether it needs the clock shim.
        work: how long the job works, in times that it is due.
    """

    name: str
    play: Callable[[Stage], None]
    measured: str
    ours: Callable[[Settings], Range]
    old: tuple[Range | None, Range | None]
    takes: Range
    persistence: Persistence = "aof"
    harms_server: bool = False
    shifts_clock: bool = False
    work: float = 0.25

    @property
    def about(self) -> str:
        """What is done, in one sentence."""
        return (self.play.__doc__ or "").splitlines()[0]

    def lasts(self, settings: Settings) -> float:
        """About how many seconds one run takes."""
        if self.play is chaos:
            return settings.duration + 3.0
        return self.takes[0] * settings.ttl + self.takes[1]


def _after_lease(settings: Settings) -> Range:
    # It was renewed last between no time and a heartbeat before.
    return settings.ttl * 2 / 3, settings.ttl + HANDOVER


def _at_return(settings: Settings) -> Range:
    return 0.0, settings.retry_interval + 0.5


def _at_once(settings: Settings) -> Range:
    return 0.0, HANDOVER


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "graceful",
            graceful,
            "from the signal to the new leader",
            _at_once,
            ((0.5, 2), (1, 3)),
            (0.2, 1.5),
        ),
        Scenario(
            "crash",
            crash,
            "from the kill to the new leader",
            _after_lease,
            ((5, 8), (10, 15)),
            (1.2, 1.2),
        ),
        Scenario(
            "cascade",
            cascade,
            "three changes of leader, added up",
            lambda settings: (0.0, 3 * HANDOVER),
            (None, (4, 9)),
            (0.6, 2.5),
        ),
        Scenario(
            "rejoin",
            rejoin,
            "from its start until it follows",
            _at_once,
            (None, None),
            (0.8, 2.5),
        ),
        Scenario(
            "partition",
            partition,
            "from the cut to the new leader",
            _after_lease,
            ((5, 8), (10, 15)),
            (1.6, 1.5),
        ),
        Scenario(
            "partition-refused",
            partition_refused,
            "from the cut to the new leader",
            _after_lease,
            ((5, 8), (10, 15)),
            (1.3, 1.5),
        ),
        Scenario(
            "last-standing",
            last_standing,
            "from the kill to the new leader",
            _after_lease,
            (None, (10, 15)),
            (1.2, 1.2),
        ),
        Scenario(
            "server-down",
            server_down,
            "from the start of the server to the new leader",
            _at_return,
            (None, None),
            (1.3, 2.0),
            harms_server=True,
        ),
        Scenario(
            "pause",
            pause,
            "from the SIGSTOP to the new leader",
            _after_lease,
            (None, None),
            (1.6, 1.5),
            work=2.0,
        ),
        Scenario(
            "skew",
            skew,
            "from the kill to the new leader",
            lambda settings: (
                settings.ttl * 2 / 3,
                settings.ttl + settings.retry_interval + HANDOVER,
            ),
            (None, None),
            (2.2, 1.5),
            harms_server=True,
            shifts_clock=True,
        ),
        Scenario(
            "data-loss",
            data_loss,
            "from the start of the server to the new leader",
            _at_return,
            (None, None),
            (0.8, 2.0),
            persistence="none",
            harms_server=True,
        ),
        Scenario(
            "chaos",
            chaos,
            "each time without a leader",
            lambda settings: (0.0, settings.ttl + settings.retry_interval),
            (None, None),
            (0.0, 0.0),
        ),
    )
}
