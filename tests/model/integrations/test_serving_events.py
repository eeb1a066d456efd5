"""What a request hears, and clients that do not read."""

import asyncio

import pytest

for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)

from bitdance.integrations.serving.events import Events, TimedResponse  # noqa: E402


async def _no_message():
    await asyncio.Event().wait()


def test_of_progress_and_previews_only_the_newest_is_kept():
    async def run():
        events = Events(previews=True)
        for step in range(1000):
            events.progress(0, step, 1000)
            events.partial(1, step, b"x" * 1000)
        events.finished(0, b"a")
        events.finished(1, b"b")
        await asyncio.sleep(0)  # what the threads have asked for runs
        assert len(events._events) == 4
        heard = []
        async for event in events.read():
            heard.append((event.kind, event.number, event.value[0], event.file[:1]))
            if len(heard) == 4:
                return heard
        return None

    assert asyncio.run(run()) == [
        ("progress", 0, 999, b""), ("partial", 1, 999, b"x"),
        ("finished", 0, 0, b"a"), ("finished", 1, 0, b"b"),
    ]  # fmt: skip


def test_events_after_the_loop_has_closed_are_dropped():
    async def run():
        return Events(previews=False)

    events = asyncio.run(run())
    events.finished(0, b"a")
    assert events._events == {}


@pytest.mark.parametrize("what", ["reads", "does not read", "leaves", "fails"])
def test_how_a_response_ends(what):
    ended, sent = [], []

    async def chunks():
        yield b"a"
        if what == "fails":
            raise OSError("broken")
        yield b"b"

    async def send(message):
        sent.append(message.get("body"))
        if what != "reads" and message.get("body"):
            await asyncio.sleep(0 if what == "fails" else 3600)

    async def receive():
        if what != "leaves":
            await _no_message()
        return {"type": "http.disconnect"}

    response = TimedResponse(chunks(), {"a": "b"}, timeout=0.05, on_end=ended.append)
    asyncio.run(response({}, receive, send))
    assert ended == [what == "reads"]
    assert sent[:2] == ([None, b"a"] if what != "leaves" else sent[:2])
    assert (b"b" in sent) == (what == "reads")
