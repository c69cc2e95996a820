"""What is said of containers, and of which attempt: no engine is needed."""

from __future__ import annotations

import asyncio

import pytest

from xqute.scheduler import Phase
from xqute_container import ContainerScheduler
from xqute_container.client import Traits
from xqute_container.parse import Container, Ended, Stage
from xqute_container.watching import Watching


class Engine:
    """Says of each container that it has ended with 7."""

    traits = Traits("made")

    def __init__(self):
        self.removed = []

    def find(self, wanted):
        return Container("id", wanted.key, Stage.ENDED, wanted.metadir, wanted.tag, exit_code=7)

    def look(self, wanted):
        return [self.find(one) for one in wanted]

    def remove(self, *wanted):
        self.removed += [one.key for one in wanted]


@pytest.fixture
def follow(tmp_path):
    """Follow the container of a job, whose next attempt may begin while the engine answers."""

    def follow(*, goes_on):
        scheduler = ContainerScheduler("image", bin="/bin/true", workdir=tmp_path)
        jobs = [scheduler.create_job(index, ["false"]) for index in range(2)]
        engine, said = Engine(), []

        async def call(do, *args):
            answer = do(*args)
            if goes_on and do != engine.remove:
                jobs[0].trial_count += 1
            return answer

        watching = Watching(engine, scheduler, call, remove=lambda: True)
        watching.report = lambda job, state: said.append((job.index, state.phase, state.rc))
        watching.add(jobs)
        for job in jobs:
            for claim, words in {"start": "host - 0 - -\n", "end": "7 7 EXIT_CODE\n"}.items():
                job.write_file(f"job.{claim}.{scheduler.claim_tag(job)}", words)
        return scheduler, watching, jobs, engine, said

    return follow


@pytest.mark.parametrize("goes_on", [True, False], ids=["next attempt", "same attempt"])
async def test_an_end_is_not_told_of_the_attempt_that_has_begun_meanwhile(follow, goes_on):
    """Its job told it faster, and was tried again before the engine had answered."""
    scheduler, watching, [job, _], engine, said = follow(goes_on=goes_on)
    key = scheduler.submission_key(job)
    watching._hear(Ended(key, "id", 7))
    while watching._tasks:
        await asyncio.wait(watching._tasks)
    assert said == ([] if goes_on else [(0, Phase.ENDED, 7)])
    assert engine.removed == [key]


async def test_nor_are_ends_that_were_missed(follow):
    _, watching, _, _, said = follow(goes_on=True)
    watching._catch_up()
    while watching._tasks:
        await asyncio.wait(watching._tasks)
    assert said == [(1, Phase.ENDED, 7)]
