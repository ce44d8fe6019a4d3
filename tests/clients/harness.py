"""What the checks stand on: a gateway to start, kill and write to; waiting for facts; and the story of a client, frame by frame.

Whatever is waited for is waited for with one patience, and what did not come is told with what was expected and what came instead.
"""
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import time

PATIENCE_SECONDS = 30
SHOWN_MAX = 10
SWITCHES = [(1, "Front door", True, 3), (2, "Workshop", False, 0), (3, "Greenhouse", True, 7)]


class Unexpected(Exception):
    """Something else came than what was expected."""


def expect(what, came, expected):
    if came == expected:
        return
    if isinstance(came, list) and isinstance(expected, list) and max(len(came), len(expected)) > SHOWN_MAX:
        # Long stories are told from shortly before where they part.
        parts = next((at for at, pair in enumerate(zip(came, expected)) if pair[0] != pair[1]), min(len(came), len(expected)))
        shown = slice(max(0, parts - 2), parts + SHOWN_MAX)
        what = f"{what}: of {len(expected)} expected and {len(came)} that came, from {shown.start} on"
        came, expected = came[shown], expected[shown]
    raise Unexpected(f"{what}\n    expected {expected!r}\n    came     {came!r}")


async def soon(what, waiting):
    """What is waited for, within the patience."""
    try:
        return await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    except asyncio.TimeoutError:
        raise Unexpected(f"{what}\n    expected within {PATIENCE_SECONDS} s\n    came     nothing") from None


async def until(what, look, expected):
    """Looks until it sees what is expected."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (came := look()) != expected and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    expect(what, came, expected)


class Child:
    """A program that runs, and the lines that it prints."""

    @classmethod
    async def start(cls, *command, **environment):
        child = cls()
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, "limit": 64 << 20}
        child.process = await asyncio.create_subprocess_exec(*map(str, command), **pipes, env={**os.environ, **environment})
        child.complaints = []
        child.complaining = asyncio.create_task(child.listen())
        return child

    async def listen(self):
        while line := await self.process.stderr.readline():
            self.complaints.append(line.decode().rstrip("\n"))

    async def line(self, what):
        """The next line of its standard output; None at its end."""
        line = await soon(what, self.process.stdout.readline())
        return line.decode().rstrip("\n") if line else None

    def send(self, how):
        # Not by the process's own method: that may take the exit code away from the one that waits for it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, how)

    async def kill(self, how=signal.SIGKILL):
        """Sends a signal, and returns what else it printed."""
        if self.process.returncode is None:
            self.send(how)
        return await self.end()

    async def end(self):
        """Waits for its end, and returns what else it printed."""
        rest = await soon("the end of a program", self.process.stdout.read())
        await self.process.wait()
        await self.complaining
        return rest.decode().splitlines()


class Gateway:
    """`switchboard dev` in a folder, at one address over all its restarts."""

    def __init__(self, folder):
        self.folder, self.address, self.child, self.selections = folder, "127.0.0.1:0", None, 0

    def selection(self):
        """All switches, as nobody asked for them before: who shares a reading of rows with another gets what changed since as commits."""
        self.selections += 1
        return f"table=switch&where=id.lt.{10**9 + self.selections}"

    async def start(self):
        self.child = await Child.start(os.environ["SWITCHBOARD_BIN"], "dev", "--listen", self.address, "--data", self.folder)
        line = await self.child.line("the line with the addresses")
        told = re.fullmatch(r"listening on http://(127\.0\.0\.1:\d+) ws://\1/v1/feed", line or "")
        if not told:
            await self.child.kill()
            raise Unexpected(f"the gateway's first line\n    expected the addresses\n    came     {line}, and {self.child.complaints}")
        self.address = told[1]
        await until("a line to try, on standard error", lambda: self.line_to_try() is not None, True)
        self.psql = shlex.split(self.line_to_try())[:2]

    def line_to_try(self):
        return next((line.split(maxsplit=1)[1] for line in self.child.complaints if line.startswith("  Try ")), None)

    async def kill(self):
        await self.child.kill()

    async def sql(self, *statements):
        """Each statement in a transaction of its own; what they return."""
        commands = [part for statement in statements for part in ("-c", statement)]
        psql = await Child.start(*self.psql, "-qAtX", "-v", "ON_ERROR_STOP=1", *commands)
        lines = await psql.end()
        expect(f"psql with {statements[0][:60]!r}: {psql.complaints}", psql.process.returncode, 0)
        return lines

    async def fresh(self):
        """The switches that each check begins with."""
        rows = ", ".join(f"({id}, '{name}', {status}, {level})" for id, name, status, level in SWITCHES)
        await self.sql(f"begin; truncate switch; insert into switch values {rows}; commit")

    async def burst(self, first):
        """Begins to insert switches, a commit each, from this id on; for the gateway to be killed in the middle, with its PostgreSQL."""
        loop = f"do $$ begin for id in {first}..{first + 99999} loop insert into switch values (id, 'burst'); commit; end loop; end $$"
        return await Child.start(*self.psql, "-qAtX", "-c", loop)

    async def ids_from(self, first):
        return [int(id) for id in await self.sql(f"select id from switch where id >= {first} order by id")]


class Story:
    """What one subscription was told; checks the chain of its cursors."""

    def __init__(self, cursor=None):
        self.last, self.cursor, self.frames, self.inserted = cursor, cursor, [], []

    def take(self, frame):
        self.frames.append(frame)
        if frame["type"] in ("ready", "commit", "position"):
            expect(f"prev of {frame}", frame.get("prev"), self.last)
            self.last = frame["cursor"]
        if not frame.get("more"):
            self.cursor = self.last
        self.inserted += [change["key"]["id"] for change in frame.get("changes", []) if change["op"] == "insert"]
        return frame

    async def read(self, what, receive, enough):
        """Takes frames until one is enough."""
        while not enough(self.take(json.loads(await soon(what, receive())))):
            pass
        return self.frames[-1]


def is_a(kind):
    return lambda frame: frame["type"] == kind


def has_an_update(frame):
    return any(change["op"] == "update" for change in frame.get("changes", []))
