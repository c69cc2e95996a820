"""The ledger: a journal that came to harm says less than was written, and never anything else."""

from __future__ import annotations

import json
import os
import random
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import WorkdirError, Xqute
from xqute._engine.journal import Journal
from xqute._engine.ledger import Ledger, encode
from xqute.testing import Behaviour, MemoryScheduler

FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


#: What an end consists of.
END = {"outcome", "rc", "cause", "ended_at"}


def facts(entry):
    return {name: getattr(entry, name) for name in entry.__slots__}


def state(folder):
    """What the ledger knows, as plain values."""
    return {index: facts(entry) for index, entry in Ledger.read(str(folder)).entries.items()}


class Model:
    """The journal's format once more, read as docs/recovery.md has it, for sound journals only."""

    def __init__(self):
        self.entries = {}
        #: Everything that was ever so, by index, run and attempt.
        self.truths = {}

    def apply(self, line, run_id):
        checksum, _, body = line.rstrip().partition(b" ")
        kind, *fields = json.loads(body)
        assert int(checksum, 16) == zlib.crc32((b"" if kind == "h" else run_id.encode()) + body)
        getattr(self, f"on_{kind}")(run_id, *fields)

    def on_h(self, run_id, version, told, *_):
        assert (version, told) == (1, run_id)

    def on_s(self, run_id, key, jobs):
        for position, (index, attempt, digest, *gpus) in enumerate(jobs):
            self.entries[index] = {
                "run_id": run_id,
                "attempt": attempt,
                "key": key,
                "position": position,
                "digest": digest,
                "jid": None,
                "killed": False,
                "outcome": None,
                "rc": 0,
                "cause": None,
                "ended_at": 0.0,
                "hooked": False,
                "gpus": tuple(gpus),
            }
            self.note(index)

    def note(self, index, **news):
        entry = self.entries[index]
        entry.update(news)
        attempt = (index, entry["run_id"], entry["attempt"])
        self.truths.setdefault(attempt, []).append(dict(entry))

    def tell(self, run_id, index, attempt, **news):
        entry = self.entries[index]
        assert attempt in (entry["attempt"], f"{entry['run_id']}-{entry['attempt']}")
        assert isinstance(attempt, str) or entry["run_id"] == run_id
        self.note(index, **news)

    def on_i(self, run_id, index, attempt, jid):
        self.tell(run_id, index, attempt, jid=jid)

    def on_k(self, run_id, *pairs):
        for index, attempt in zip(pairs[::2], pairs[1::2], strict=True):
            self.tell(run_id, index, attempt, killed=True)

    def on_e(self, run_id, index, attempt, outcome, rc, cause, at):
        self.tell(run_id, index, attempt, outcome=outcome, rc=rc, cause=cause, ended_at=at)

    def on_d(self, run_id, *pairs):
        for index, attempt in zip(pairs[::2], pairs[1::2], strict=True):
            self.tell(run_id, index, attempt, hooked=True)

    def check(self, told):
        """Of each attempt nothing is told that was not once so, be it less."""
        for index, entry in told.items():
            truths = self.truths[index, entry["run_id"], entry["attempt"]]
            unknown = {"jid": None, "killed": False, "hooked": False}
            for name in entry.keys() - END:
                known = [truth[name] for truth in truths]
                assert entry[name] in known or entry[name] == unknown[name], (index, name)
            end = {name: entry[name] for name in END}
            ends = [{name: truth[name] for name in END} for truth in truths]
            assert end in ends or entry["outcome"] is None, index


def segments(folder):
    return sorted(folder.glob("*.jsonl"))


def run_id_of(segment):
    return segment.stem.partition("-")[2]


def model_of(folder):
    model = Model()
    for segment in segments(folder):
        for line in segment.read_bytes().splitlines():
            model.apply(line, run_id_of(segment))
    return model


@pytest.fixture
async def journal(tmp_path):
    """The journal of three runs: retries, kills, plans of several jobs, adoptions, a live job."""

    def behave(job):
        if job.index == 2:
            return Behaviour(rc=3)
        if job.index == 3:
            return Behaviour(runs_s=60)
        return Behaviour()

    for n_run in range(3):
        xq = Xqute(
            MemoryScheduler,
            workdir=tmp_path,
            forks=3,
            error_strategy="retry",
            num_retries=1,
            resume=n_run > 0,
            scheduler_opts={"behave": behave, "batch": 2 if n_run == 1 else 1},
        )
        for index in range(6):
            # Job 5 is another one each time.
            await xq.put(["true", str(n_run if index == 5 else index)])
        while not all(job.has_ended for job in xq.jobs if job.index != 3):
            await next_end(xq)
        if n_run == 2:
            await xq.detach()
        else:
            xq.cancel()
            await xq.run_until_complete()
    folder = tmp_path / ".run" / "journal"
    assert len(segments(folder)) == 3
    return folder


async def next_end(xq):
    async for job in xq.completed():
        if job.index != 3 and all(other.has_ended for other in xq.jobs if other.index != 3):
            return


def test_what_was_written_is_read(journal):
    told = state(journal)
    assert told == model_of(journal).entries
    outcomes = [told[index]["outcome"] for index in range(6)]
    assert outcomes == [*["succeeded"] * 2, "failed", None, *["succeeded"] * 2]
    assert (told[2]["attempt"], told[2]["rc"], told[2]["hooked"]) == (1, 3, True)
    assert told[3]["jid"] is not None
    assert len(Ledger.read(str(journal)).owners) == 3


def test_cut_off_at_any_byte_it_tells_what_was_so_then(journal):
    model = Model()
    for segment in segments(journal):
        whole = segment.read_bytes()
        run_id = run_id_of(segment)
        for later in segments(journal)[segments(journal).index(segment) + 1 :]:
            later.rename(later.with_suffix(".later"))
        at = 0
        for line in whole.splitlines(keepends=True):
            before = {index: dict(entry) for index, entry in model.entries.items()}
            model.apply(line, run_id)
            for n_bytes in range(len(line)):
                segment.write_bytes(whole[: at + n_bytes])
                # Without the newline alone, the line is whole.
                expected = model.entries if n_bytes == len(line) - 1 else before
                assert state(journal) == expected, (line, n_bytes)
            at += len(line)
        segment.write_bytes(whole)
        for later in journal.glob("*.later"):
            later.rename(later.with_suffix(".jsonl"))
    assert state(journal) == model.entries


@pytest.fixture
def lines(journal):
    """A function that reads other bytes in the place of a journal's, these, and their model."""
    model = model_of(journal)
    sound = {segment: segment.read_bytes() for segment in segments(journal)}

    def read(contents):
        for segment, content in zip(sound, contents, strict=True):
            segment.write_bytes(content)
        told = state(journal)
        model.check(told)
        return told

    return read, list(sound.values()), model


@FUZZ
@given(st.data())
def test_flipped_bits_are_never_taken_for_anything(lines, data):
    read, sound, _ = lines
    harmed = [bytearray(content) for content in sound]
    for _ in range(data.draw(st.integers(1, 8))):
        content = data.draw(st.sampled_from(harmed))
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
    read([bytes(content) for content in harmed])


@FUZZ
@given(st.randoms(use_true_random=False))
def test_lines_that_are_lost_shuffled_repeated_or_foreign_tell_nothing_wrong(lines, rnd):
    read, sound, _ = lines
    every = [line for content in sound for line in content.splitlines(keepends=True)]
    harmed = []
    for content in sound:
        mine = content.splitlines(keepends=True)
        mine = [line for line in mine if rnd.random() < 0.9]
        for _ in range(rnd.randrange(6)):
            line = rnd.choice(every)  # of this run, or of another
            mine.insert(rnd.randint(0, len(mine)), line)
        if rnd.random() < 0.5:
            rnd.shuffle(mine)
        harmed.append(b"".join(mine))
    read(harmed)


@FUZZ
@given(st.lists(st.binary(max_size=80), max_size=5), st.integers(0, 2**32 - 1))
@example([b"\n" * 5], 0)
@example([b"00000000 \n"], 0)
@example([b"\xff" * 80], 1)
def test_noise_between_the_lines_changes_nothing(lines, noise, seed):
    read, sound, model = lines
    rnd = random.Random(seed)
    harmed = []
    for content in sound:
        mine = content.splitlines(keepends=True)
        for some in noise:
            mine.insert(rnd.randint(1, len(mine)), some + b"\n")
        harmed.append(b"".join(mine))
    assert read(harmed) == model.entries


def test_holes_and_wrong_files_are_passed_over(journal):
    before = state(journal)
    for name in ("1-a.jsonl", "000009-A.jsonl", "000009-.jsonl", "notes.txt", ".part", ".nfs01"):
        (journal / name).write_bytes(b"\0" * 5000)
    (journal / "000099-ffff.jsonl").write_bytes(b"\0" * 100_000)
    assert state(journal) == before


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, 1, 2, 3, 10**400, -1, float("inf"), float("nan"), 1e308]),
        st.text(max_size=8),
        st.sampled_from(["succeeded", "failed", "0a-0", "\ud800", "../../etc"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
RECORD = st.one_of(
    JSON,
    st.builds(lambda kind, fields: [kind, *fields], st.sampled_from("hsikedcx"), st.lists(JSON)),
    st.builds(lambda index, rest: ["c", index, "0a", *rest], JSON, st.lists(JSON, max_size=11)),
    st.builds(lambda kind, rest: [kind, 0, 0, *rest], st.sampled_from("ike"), st.lists(JSON)),
)


@FUZZ
@given(st.lists(RECORD, max_size=8))
@example([["s", None, [[0, 0, "d"]]], ["e", 0, 0, "succeeded", float("inf"), None, 0]])
@example([["s", None, [[0, 0, "d"]]], ["e", 0, 0, "succeeded", 0, None, 10**400]])
@example([["s", None, [[0, 0, "d"], [1, -1, "d"]]]])
def test_records_of_any_content_are_no_crash(tmp_path, caplog, records):
    caplog.set_level("ERROR", "XQUTE")  # each is told
    content = encode(["h", 1, "0a", "00", "host", 1, "boot", 0.0])
    content += b"".join(encode(json.dumps(record), "0a") for record in records)
    (tmp_path / "000001-0a.jsonl").write_bytes(content)
    for index, entry in state(tmp_path).items():
        assert isinstance(index, int)
        assert isinstance(entry["attempt"], int)
        assert type(entry["rc"]) is int
        assert entry["jid"] is None or isinstance(entry["jid"], int | str)
        assert entry["outcome"] is None or entry["outcome"].islower()


def test_deep_json_is_no_crash(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    content = encode(["h", 1, "0a", "00", "host", 1, "boot", 0.0]) + encode(deep, "0a")
    (tmp_path / "000001-0a.jsonl").write_bytes(content + encode('["s",null,[[0,0,"d"]]]', "0a"))
    assert list(state(tmp_path)) == [0]


@pytest.mark.parametrize(
    "header",
    [["h", 2, "0a"], ["h", "2.1", "0a", "00", "x", 1, "b", 0.0, "more"], ["h", 2, {"run": "0a"}]],
)
def test_a_later_version_is_refused_by_name_whatever_else_it_says(tmp_path, header):
    (tmp_path / "000001-0a.jsonl").write_bytes(encode(header))
    with pytest.raises(WorkdirError, match=rf"format is {header[1]!r}.*reads 1"):
        Ledger.read(str(tmp_path))


async def test_a_run_over_a_journal_of_a_later_version_does_not_begin(tmp_path):
    folder = tmp_path / ".run" / "journal"
    folder.mkdir(parents=True)
    (folder / "000001-0a.jsonl").write_bytes(encode(["h", 2, "0a"]))
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(WorkdirError, match="another version of xqute"):
        await xq.put("true")
    assert xq.jobs == []


# --- compaction -----------------------------------------------------------------------------------


def test_compacted_it_says_the_same_in_one_file(journal):
    before, key = state(journal), Ledger.read(str(journal)).digest_key
    ledger = Ledger.read(str(journal))
    ledger.compact()
    assert state(journal) == before
    assert [str(segment) for segment in segments(journal)] == ledger.segments
    assert os.listdir(journal) == [os.path.basename(ledger.segments[0])]
    assert Ledger.read(str(journal)).digest_key == key
    again = Ledger.read(str(journal))
    again.compact()
    assert state(journal) == before


class Killed(BaseException):
    """As SIGKILL: nobody handles it."""


@pytest.mark.parametrize("n_call", range(12))
def test_killed_in_the_middle_of_a_compaction_it_still_says_the_same(journal, monkeypatch, n_call):
    before = state(journal)
    ledger = Ledger.read(str(journal))
    n_left = n_call

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal n_left
            n_left -= 1
            if n_left < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "rename", "unlink"):
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr("xqute._engine.ledger.encode", deadly(encode))
        try:
            ledger.compact()
        except Killed:
            survived = False
        else:
            survived = True
    assert state(journal) == before
    Ledger.read(str(journal)).compact()
    assert state(journal) == before
    assert len(os.listdir(journal)) == 1
    assert survived is (n_call >= 15)


@pytest.mark.needs("mount", root=True)
async def test_a_compaction_that_the_disk_has_no_room_for_keeps_no_run_from_beginning(mounted):
    path = mounted("size=200k")
    folder = path / "journal"
    folder.mkdir()
    for number in range(1, 6):
        entries = [encode(["s", None, [[index, 0, "d" * 16]]], "0a") for index in range(400)]
        header = encode(["h", 1, "0a", "00", "host", 1, "boot", 0.0])
        (folder / f"{number:06d}-0a.jsonl").write_bytes(header + b"".join(entries))
    before = state(folder)
    about = os.statvfs(path)
    (path / "filler").write_bytes(b"x" * (about.f_bavail * about.f_bsize - 8192))
    journal, ledger = await Journal.open(str(folder), "0b", durable=False)
    await journal.close()
    assert len(ledger.segments) == 5
    assert state(folder) == before
    assert not (folder / ".part").exists()


READER = """
    import os, sys, time
    from xqute._engine.ledger import Ledger

    folder, stop = sys.argv[1:]
    n_reads, most = 0, 0
    while not os.path.exists(stop):
        entries = Ledger.read(folder).entries
        assert all(entries[index].outcome == "succeeded" for index in range(50)), "it lost some"
        # What is known of the others grows.
        assert len(entries) >= most, (len(entries), most)
        most = len(entries)
        n_reads += 1
        if n_reads == 1:
            open(stop + ".reading", "w").close()
    print(n_reads)
"""


async def run_memory_jobs(tmp_path, n_jobs):
    xq = Xqute(MemoryScheduler, workdir=tmp_path, resume=True)
    for index in range(n_jobs):
        await xq.put(["true", str(index)])
    await xq.run_until_complete()


@pytest.mark.concurrency
async def test_others_read_it_while_runs_write_and_compact_it(tmp_path, start_driver, until):
    folder, stop = tmp_path / ".run" / "journal", tmp_path / "stop"
    await run_memory_jobs(tmp_path, 50)
    reader = start_driver(READER, folder, stop)
    await until((tmp_path / "stop.reading").exists)
    for n_run in range(30):
        await run_memory_jobs(tmp_path, 50 + n_run)
    stop.touch()
    assert reader.finish() > 3
    assert 1 <= len(segments(folder)) <= 5
    assert len(state(folder)) == 79
