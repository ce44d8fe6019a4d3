"""What clients that are not ours see of a gateway. `run` prepares what this needs and calls it with a folder to work in.

Prints one line for each check; exits with 1 if one failed.
"""
import asyncio
import contextlib
import json
import pathlib
import shutil
import signal
import sys
import time
from urllib.parse import quote

import tornado.websocket
import websockets

from harness import SWITCHES, Child, Gateway, Story, Unexpected, expect, has_an_update, is_a, soon, until

HERE = pathlib.Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
# How many commits a client has heard of when the gateway is killed in the middle of more.
HEARD = 50
BURST = 1001
FLIP = "update switch set status = not status where id = 1"

CHECKS = []


def check(name):
    def add(function):
        CHECKS.append((name, function))
        return function
    return add


# ---- websockets ----


@check("websockets: rows and changes of a filter and of columns")
async def _(gateway, work):
    address = f"ws://{gateway.address}/v1/feed?table=switch&where=status.is.true&columns=name,status"
    async with websockets.connect(address) as socket:
        story = Story()
        await story.read("ready", socket.recv, is_a("ready"))
        await gateway.sql(FLIP, "update switch set level = 9 where id = 2", "update switch set status = true where id = 2", "delete from switch where id = 3")
        for _ in range(3):
            await story.read("a commit", socket.recv, is_a("commit"))

    # A gateway that has just begun may first say that it has not reached its PostgreSQL.
    hello, rows = [frame for frame in story.frames if frame["type"] in ("hello", "rows")]
    expect("hello", (hello["type"], hello["protocol"]), ("hello", 1))
    on = [{"id": id, "name": name, "status": status} for id, name, status, _ in SWITCHES if status]
    expect("rows", rows, {"type": "rows", "table": "public.switch", "key": ["id"], "rows": on})
    changes = [change for frame in story.frames if frame["type"] == "commit" for change in frame["changes"]]
    expect("changes", [(change["op"], change["key"], change["match"], change.get("new")) for change in changes], [
        ("update", {"id": 1}, "leave", {"id": 1, "name": "Front door", "status": False}),
        ("update", {"id": 2}, "enter", {"id": 2, "name": "Workshop", "status": True}),
        ("delete", {"id": 3}, "leave", None),
    ])


@check("websockets: several subscriptions on one socket, and one dropped")
async def _(gateway, work):
    async with websockets.connect(f"ws://{gateway.address}/v1/feed?first=none") as socket:
        stories = {"on": Story(), 7: Story()}

        async def until_each(what, enough):
            wanted = set(stories)
            while wanted:
                frame = json.loads(await soon(what, socket.recv()))
                if frame["type"] != "hello" and enough(stories[frame["sub"]].take(frame)):
                    wanted.discard(frame["sub"])

        for id, where in (("on", "status.is.true"), (7, "level.gte.7")):
            await socket.send(json.dumps({"type": "subscribe", "id": id, "table": "switch", "where": where}))
        await until_each("ready", is_a("ready"))
        await gateway.sql("update switch set level = 8 where id = 3")
        await until_each("a commit for both", is_a("commit"))
        await socket.send(json.dumps({"type": "unsubscribe", "id": "on"}))
        await socket.send(json.dumps({"type": "unsubscribe", "id": "never"}))
        await socket.send(json.dumps({"type": "ping", "id": 1}))
        refused, pong = [json.loads(await soon("answers", socket.recv())) for _ in range(2)]
        del stories["on"]
        await gateway.sql("update switch set level = 9 where id = 3")
        await until_each("a commit for the one that is left", is_a("commit"))

    expect("the answer about a subscription that is not there", (refused["code"], refused["id"]), ("unknown_subscription", "never"))
    expect("pong", pong, {"type": "pong", "id": 1})


@check("websockets: a commit in parts, and a row that is larger than a frame")
async def _(gateway, work):
    async with websockets.connect(f"ws://{gateway.address}/v1/feed?{gateway.selection()}", max_size=None) as socket:
        story = Story()
        await story.read("ready", socket.recv, is_a("ready"))
        await gateway.sql("insert into switch select id, repeat('x', 1000) from generate_series(1001, 2000) id", "insert into switch values (5000, repeat('y', 2000000))")
        await story.read("the large row", socket.recv, lambda frame: story.inserted[-1:] == [5000])

    parts = [frame for frame in story.frames if frame["type"] == "commit"][:-1]
    expect("whether there are parts", len(parts) > 1, True)
    expect("that all but the last say so", [frame.get("more") for frame in parts], [True] * (len(parts) - 1) + [None])
    expect("the number of their cursors", len({frame["cursor"] for frame in parts}), 1)
    expect("what was inserted", story.inserted, [*range(1001, 2001), 5000])


@check("websockets: resumes where it was after the gateway was killed")
async def _(gateway, work):
    address = f"ws://{gateway.address}/v1/feed?{gateway.selection()}"
    async with websockets.connect(address) as socket:
        story = Story()
        await story.read("ready", socket.recv, is_a("ready"))
        burst = await gateway.burst(BURST)
        await story.read("some commits", socket.recv, lambda frame: len(story.inserted) >= HEARD)
        await gateway.kill()
        with contextlib.suppress(websockets.ConnectionClosed):
            await story.read("the end", socket.recv, lambda frame: False)
    expect("the code of a line that was cut", socket.close_code, 1006)
    await burst.end()
    await gateway.start()
    resumed = Story(story.cursor)
    async with websockets.connect(f"{address}&from={quote(story.cursor)}") as socket:
        await resumed.read("ready", socket.recv, is_a("ready"))
        committed = await gateway.ids_from(BURST)
        await gateway.sql(FLIP)
        await resumed.read("what is committed after all of that", socket.recv, has_an_update)

    expect("frames of rows after a resume", [frame for frame in resumed.frames if frame["type"] in ("rows", "reset")], [])
    expect("what was heard, beside what was committed", story.inserted + resumed.inserted, committed)


# ---- The example in Python, which uses websockets ----


@check("examples/follow.py: each change once, over a killed gateway and a restart of its own")
async def _(gateway, work):
    cursor_file = work / "switch.cursor"
    address = f"ws://{gateway.address}/v1/feed?{gateway.selection()}"

    def follow():
        return Child.start(sys.executable, EXAMPLES / "follow.py", address, cursor_file)

    lines = []

    async def hear(follower, what, enough):
        while not enough():
            lines.append(await follower.line(what))
            expect(f"a line, where there may be a complaint: {follower.complaints}", lines[-1] is not None, True)

    follower = await follow()
    await hear(follower, "the rows", lambda: len(lines) == len(SWITCHES))
    await until("the file of the cursor", cursor_file.exists, True)
    burst = await gateway.burst(BURST)
    await hear(follower, "some changes", lambda: len(lines) >= HEARD)
    await gateway.kill()
    await burst.end()
    await gateway.start()
    committed = await gateway.ids_from(BURST)
    await hear(follower, "all that was committed", lambda: len(lines) == len(SWITCHES) + len(committed))
    await until("the file of the cursor", cursor_file.read_text, lines[-1].split()[0])
    lines += await follower.kill(signal.SIGINT)
    await gateway.sql(FLIP, "delete from switch where id = 2")
    follower = await follow()
    before = len(lines)
    await hear(follower, "what happened meanwhile", lambda: len(lines) == before + 2)
    await until("the file of the cursor", cursor_file.read_text, lines[-1].split()[0])
    lines += await follower.kill(signal.SIGINT)

    rows = [f"row public.switch {json.dumps(dict(zip(('id', 'name', 'status', 'level'), switch)))}" for switch in SWITCHES]
    expect("rows", lines[:3], rows)
    expect("inserts", [line.split()[1:5] for line in lines[3:before]], [["insert", "public.switch", '{"id":', f"{id}}}"] for id in committed])
    expect("the rest", [line.split(maxsplit=1)[1] for line in lines[before:]], [
        'update public.switch {"id": 1} {"status": false}',
        'delete public.switch {"id": 2} {}',
    ])


# ---- tornado ----


async def tornado_connect(gateway, path):
    return await soon("a handshake", tornado.websocket.websocket_connect(f"ws://{gateway.address}{path}"))


async def tornado_ends(client):
    """The close code, behind all messages."""
    while await soon("the end of the connection", client.read_message()) is not None:
        pass
    return client.close_code


@check("tornado: the feed, and ping and pong in both layers")
async def _(gateway, work):
    ponged = asyncio.Event()
    client = await tornado_connect(gateway, "/v1/feed?table=switch")
    client.on_pong = lambda data: ponged.set() if data == b"are you there" else None
    story = Story()
    await story.read("ready", client.read_message, is_a("ready"))
    client.ping(b"are you there")
    await soon("the pong of the protocol", ponged.wait())
    await client.write_message('{"type":"ping","id":"a"}')
    pong = await story.read("pong", client.read_message, is_a("pong"))
    await gateway.sql(FLIP)
    commit = await story.read("a commit", client.read_message, is_a("commit"))
    client.close(1000)

    expect("pong", pong, {"type": "pong", "id": "a"})
    expect("changes", [(change["op"], change["changed"]) for change in commit["changes"]], [("update", ["status"])])
    expect("the answer to 1000", await tornado_ends(client), 1000)


@check("tornado: the bytes of /switch/status")
async def _(gateway, work):
    client = await tornado_connect(gateway, "/switch/status")
    first = asyncio.ensure_future(client.read_message())
    # Whether the stream has begun cannot be seen; what has begun hears one of these.
    while not first.done():
        await gateway.sql("update switch set status = true where id = 1", "update switch set status = false where id = 1")
        await asyncio.wait([first], timeout=0.05)
    await gateway.sql("update switch set level = 8 where id = 3", "update switch set status = true where id = 2", "insert into switch values (9, 'new', false)")
    came = [first.result()]
    while came[-1] != '{"switch_id":"9","status":"0"}':
        came.append(await soon("a frame", client.read_message()))
    client.close()

    # The last of the flips, and nothing about the level.
    expect("the last three frames", came[-3:], ['{"switch_id":"1","status":"0"}', '{"switch_id":"2","status":"1"}', '{"switch_id":"9","status":"0"}'])


@check("tornado: 4400 for a table that is not watched, 4410 for a cursor that is gone")
async def _(gateway, work):
    client = await tornado_connect(gateway, "/v1/feed?table=nope")
    story = Story()
    error = await story.read("an error", client.read_message, is_a("error"))
    wrong = await tornado_ends(client)
    gone = await tornado_ends(await tornado_connect(gateway, "/v1/feed?table=switch&from=zzzz.1.abcd&on_reset=close"))

    expect("the error", error["message"], "table nope is not watched; watched is public.switch; to watch it: switchboard watch nope")
    expect("close codes", (wrong, gone), (4400, 4410))


# ---- curl ----


async def curl(gateway, path, *options):
    """The status and the body."""
    process = await Child.start("curl", "-sS", "-w", "\n%{http_code}", *options, f"http://{gateway.address}{path}")
    lines = await process.end()
    expect(f"curl {path}: {process.complaints}", process.process.returncode, 0)
    return int(lines[-1]), json.loads("\n".join(lines[:-1]))


class Events:
    """Server-sent events as curl shows them: each a dictionary of its fields."""

    @classmethod
    async def open(cls, address, path, *options):
        events = cls()
        events.child = await Child.start("curl", "-sSN", "-H", "Accept: text/event-stream", *options, f"http://{address}{path}")
        return events

    async def next(self):
        fields = {}
        while True:
            line = await self.child.line("an event")
            expect(f"a line, where there may be a complaint: {self.child.complaints}", line is not None, True)
            name, _, value = line.partition(": ")
            if not line and "data" in fields:
                return fields
            if name and not line.startswith(":"):
                fields[name] = value

    async def read(self, kind):
        """The events up to the first of this kind, as (id, frame)."""
        events = []
        while not events or events[-1][1]["type"] != kind:
            fields = await self.next()
            events.append((fields.get("id"), json.loads(fields["data"])))
        return events


@check("curl: server-sent events, and Last-Event-ID")
async def _(gateway, work):
    path = f"/v1/feed?{gateway.selection()}"
    events = await Events.open(gateway.address, path)
    begun = await events.read("ready")
    await gateway.sql(FLIP)
    [(id, commit)] = await events.read("commit")
    await events.child.kill()
    await gateway.sql("delete from switch where id = 2")
    events = await Events.open(gateway.address, path, "-H", f"Last-Event-ID: {id}")
    resumed = await events.read("commit")
    await events.child.kill()

    expect("the kinds of events", [frame["type"] for _, frame in begun], ["hello", "rows", "ready"])
    expect("their ids", [id for id, _ in begun], [None, None, begun[-1][1]["cursor"]])
    expect("the id of a commit", id, commit["cursor"])
    expect("whether rows came again", "rows" in [frame["type"] for _, frame in resumed], False)
    expect("what follows it", (resumed[-1][1]["prev"], [change["op"] for change in resumed[-1][1]["changes"]]), (id, ["delete"]))


@check("curl: pages of changes, and waiting for one")
async def _(gateway, work):
    selection = gateway.selection()
    _, snapshot = await curl(gateway, f"/v1/snapshot?{selection}")
    await gateway.sql(FLIP, FLIP, FLIP)
    cursor = snapshot["cursor"]
    heard = []
    # What was committed a moment ago, the gateway may not have heard of yet.
    while len(heard) < 3:
        _, page = await curl(gateway, f"/v1/changes?{selection}&from={quote(cursor)}&wait=30")
        heard, cursor = heard + page["commits"], page["cursor"]
    pages, cursor = [], snapshot["cursor"]
    while not pages or pages[-1]["more"]:
        _, page = await curl(gateway, f"/v1/changes?{selection}&from={quote(cursor)}&limit=2")
        pages, cursor = pages + [page], page["cursor"]
    waiting = asyncio.create_task(curl(gateway, f"/v1/changes?{selection}&from={quote(cursor)}&wait=30"))
    await gateway.sql("delete from switch where id = 2")
    _, waited = await waiting
    _, nothing = await curl(gateway, f"/v1/changes?{selection}&from={quote(waited['cursor'])}")

    expect("rows of the snapshot", snapshot["tables"][0]["rows"], [dict(zip(("id", "name", "status", "level"), switch)) for switch in SWITCHES])
    commits = [commit for page in pages for commit in page["commits"]]
    expect("the commits on each page", [len(page["commits"]) for page in pages], [2, 1])
    expect("the commits of all pages", commits, heard)
    chain = [snapshot["cursor"]] + [commit["cursor"] for commit in commits]
    expect("the chain", [commit["prev"] for commit in commits], chain[:-1])
    expect("what came while it waited", [commit["changes"][0]["op"] for commit in waited["commits"]], ["delete"])
    expect("what there is behind it", nothing, {"commits": [], "cursor": waited["cursor"], "more": False})


@check("curl: the watched tables, and answers that name the remedy")
async def _(gateway, work):
    events = ("-H", "Accept: text/event-stream")
    _, tables = await curl(gateway, "/v1/tables")
    answers = [
        ("/v1/feed?table=nope", events, 400, "bad_request", "to watch it: switchboard watch nope"),
        ("/v1/feed?table=switch&where=level.over.3", (), 400, "bad_request", "the operators are eq"),
        ("/v1/feed?table=switch", (), 426, "websocket_only", "this address speaks WebSocket"),
        ("/v1/changes?limit=0", (), 400, "bad_request", "from 1 to 1000"),
        ("/v1/changes?from=zzzz.1.abcd", (), 410, "gone", "take a snapshot"),
        ("/v1/snapshot?from=now", (), 400, "bad_request", "leave it out"),
        ("/v1/tables", ("-H", "Origin: null"), 403, "origin", "--origins"),
        ("/nothing", (), 404, "not_found", "/v1/feed"),
    ]
    columns = [{"name": name, "type": type} for name, type in (("id", "bigint"), ("name", "text"), ("status", "boolean"), ("level", "integer"))]
    expect("tables", tables, {"tables": [{"table": "public.switch", "key": ["id"], "columns": columns}]})
    for path, options, status, code, remedy in answers:
        came, body = await curl(gateway, path, *options)
        expect(f"{path}: status, code, and whether {remedy!r} is in {body}", (came, body["error"]["code"], remedy in body["error"]["message"]), (status, code, True))


# ---- eventsource ----


@check("eventsource: comes back by itself after the gateway was killed, and goes on where it was")
async def _(gateway, work):
    node = await Child.start("node", HERE / "events.mjs", f"http://{gateway.address}/v1/feed?{gateway.selection()}")
    story, opened = Story(), 0

    async def read(what, enough):
        nonlocal opened
        while True:
            line = await node.line(what)
            expect(f"a line, where there may be a complaint: {node.complaints}", line is not None, True)
            event = json.loads(line)
            opened += event["event"] == "open"
            expect(f"whether it gave up: {event}", event.get("closed", False), False)
            if event["event"] == "message" and enough(story.take(json.loads(event["data"]))):
                return event

    await read("ready", is_a("ready"))
    burst = await gateway.burst(BURST)
    await read("some commits", lambda frame: len(story.inserted) >= HEARD)
    await gateway.kill()
    await burst.end()
    await gateway.start()
    ready = await read("ready again", lambda frame: opened == 2 and frame["type"] == "ready")
    committed = await gateway.ids_from(BURST)
    await gateway.sql(FLIP)
    last = await read("what is committed after all of that", has_an_update)
    await node.kill()

    expect("what was heard, beside what was committed", story.inserted, committed)
    expect("kinds of frames that begin anew", [frame["type"] for frame in story.frames].count("rows"), 1)
    expect("ids", (ready["lastEventId"], last["lastEventId"]), (json.loads(ready["data"])["cursor"], story.last))


# ---- nginx ----


@check("nginx: events arrive at once through a proxy that buffers")
async def _(gateway, work):
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        return "left out: there is no nginx here"
    socket = work / "nginx.sock"
    configuration = work / "nginx.conf"
    # Its defaults, but for the places of its files.
    places = "".join(f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    configuration.write_text(
        f"daemon off; master_process off; error_log stderr; pid {work}/nginx.pid; events {{}} http {{ access_log off; {places} "
        f"server {{ listen unix:{socket}; location / {{ proxy_pass http://{gateway.address}; }} }} }}"
    )
    proxy = await Child.start(nginx, "-e", "stderr", "-p", work, "-c", configuration)
    await until("the socket of nginx", socket.exists, True)
    events = await Events.open("nginx", f"/v1/feed?{gateway.selection()}", "--unix-socket", socket)
    await events.read("ready")
    await gateway.sql(FLIP)
    [(_, commit)] = await events.read("commit")
    await events.child.kill()
    await proxy.kill()

    expect("changes", [change["op"] for change in commit["changes"]], ["update"])


# ---- The end; the gateway is not there any more behind this ----


@check("tornado and websockets: 1001 when the gateway stops")
async def _(gateway, work):
    client = await tornado_connect(gateway, "/v1/feed?table=switch")
    await Story().read("ready", client.read_message, is_a("ready"))
    async with websockets.connect(f"ws://{gateway.address}/switch/status") as socket:
        gateway.child.send(signal.SIGTERM)
        with contextlib.suppress(websockets.ConnectionClosed):
            await soon("the end of the connection", socket.recv())
    code = await tornado_ends(client)
    await gateway.child.end()

    expect("close codes", (code, socket.close_code), (1001, 1001))
    expect("the gateway's exit code", gateway.child.process.returncode, 0)


async def main(work):
    gateway = Gateway(work / "data")
    failed = 0
    try:
        await gateway.start()
        for name, function in CHECKS:
            began = time.monotonic()
            try:
                await gateway.fresh()
                said = await function(gateway, work)
                print(f"ok    {time.monotonic() - began:5.1f} s  {name}{f' ({said})' if said else ''}")
            except Exception as error:
                failed += 1
                told = error if isinstance(error, Unexpected) else repr(error)
                print(f"FAIL  {time.monotonic() - began:5.1f} s  {name}: {told}")
                print("    the gateway said last:", *gateway.child.complaints[-5:], sep="\n        ")
                if gateway.child.process.returncode is not None:
                    await gateway.start()
    finally:
        if gateway.child and gateway.child.process.returncode is None:
            await gateway.child.kill(signal.SIGTERM)
    return failed


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(pathlib.Path(sys.argv[1]))) else 0)
