"""Follows a gateway of Switchboard: prints the rows, then each change in one line, and goes on where it was after whatever happened.

    pip install websockets
    python3 follow.py 'ws://127.0.0.1:8080/v1/feed?table=switch' switch.cursor

The file keeps the cursor of the last commit that was printed whole; delete it to begin with the rows again. Killed between printing
and keeping, it prints that commit once more: to deal with each exactly once, keep the cursor in the transaction that deals with it.
"""
import asyncio, contextlib, json, os, pathlib, random, sys
from urllib.parse import quote
from websockets import ConnectionClosed, InvalidHandshake, InvalidStatus, connect

STOP_CODES = {1002, 1007, 1008, 1009, 4400, 4410, 400, 401, 403}  # who asks again gets the same answer
WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 0.5, 15

class Follower:
    def __init__(self, url, file):
        self.url, self.file, self.wait = url, pathlib.Path(file), WAIT_SECONDS_MIN
        self.cursor = self.file.read_text().strip() or None if self.file.exists() else None

    def keep(self, cursor):
        self.cursor, self.wait = cursor, WAIT_SECONDS_MIN
        pathlib.Path(f"{self.file}.new").write_text(cursor)
        os.replace(f"{self.file}.new", self.file)  # a kill leaves the old one or the new one

    def begin(self):
        """A chain begins: behind the cursor, or else with rows, which nobody can go on from before they are `ready`."""
        self.last, self.resumable, self.parts = self.cursor, self.cursor is not None, []

    def take(self, frame):
        if frame["type"] == "reset":
            print(f"reset ({frame['reason']}): forget what was printed, the rows follow", flush=True)
            self.cursor = None
            self.begin()
        elif frame["type"] == "rows":
            for row in frame["rows"]:
                print("row", frame["table"], json.dumps(row))
        elif frame["type"] in ("commit", "position", "ready"):
            if frame.get("prev") != self.last:
                sys.exit(f"after {self.last} came what follows {frame.get('prev')}: something is lost or repeated; start again to resume")
            self.last = frame["cursor"]
            self.parts += frame.get("changes", [])
            if not frame.get("more"):  # a commit in parts counts once it is whole
                self.commit(frame["type"] == "ready")
        elif frame["type"] in ("error", "status"):
            print(json.dumps(frame), file=sys.stderr)

    def commit(self, ready):
        for change in self.parts:
            news = {name: change["new"][name] for name in change.get("changed", change.get("new", []))}
            print(self.last, change["op"], change["table"], json.dumps(change["key"]), json.dumps(news))
        sys.stdout.flush()
        self.parts, self.resumable = [], self.resumable or ready
        if self.resumable:
            self.keep(self.last)

    async def follow(self):
        while True:
            self.begin()
            try:  # without max_size=None the library refuses frames above 1 MiB, and one row may be larger
                async with connect(f"{self.url}&from={quote(self.cursor or 'snapshot')}", max_size=None) as socket:
                    with contextlib.suppress(ConnectionClosed):
                        async for text in socket:
                            self.take(json.loads(text))
                code, why = socket.close_code, socket.close_reason
            except InvalidStatus as refused:
                code, why = refused.response.status_code, refused.response.body.decode()
            except (OSError, TimeoutError, InvalidHandshake) as lost:
                code, why = 1006, lost
            print(f"the connection ended: {code} {why}", file=sys.stderr)
            if code in STOP_CODES:
                sys.exit(1)
            await asyncio.sleep(random.uniform(0, self.wait))
            self.wait = min(self.wait * 2, WAIT_SECONDS_MAX)

if len(sys.argv) != 3:
    sys.exit(__doc__)
with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(Follower(*sys.argv[1:]).follow())
