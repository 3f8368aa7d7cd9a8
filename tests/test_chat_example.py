"""examples/chat.py over real HTTP: a process of its own on a loopback port, browsers played by httpx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from overwinter.testing import until

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 30.0
LONG = " ".join(f"word{i}" for i in range(2000))  # takes far longer than any test
ANSWER = ["1:", *LONG.split()]


class Server:
    """The program as its reader starts it. It may be killed and started again on the same file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.address = ""

    @property
    def log(self) -> str:
        return self._log().read_text()

    def _log(self) -> Path:
        return self._folder / f"log-{self._starts}"

    async def start(self) -> None:
        self._starts += 1
        environment = {**os.environ, "CHATS_DB": "chats.db", "CHAT_PAUSE": "0.01", "PORT": "0", "PYTHONUNBUFFERED": "1"}
        with self._log().open("wb") as sink:
            self._process = process = subprocess.Popen(
                [sys.executable, str(EXAMPLES / "chat.py")], cwd=self._folder, env=environment, stderr=sink, stdout=sink
            )
        pattern = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
        await until(lambda: pattern.search(self.log) or process.poll() is not None, PATIENCE)
        found = pattern.search(self.log)
        assert found, self.log
        self.address = found[1]

    def end(self, sign: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(sign)
        return self._process.wait(PATIENCE)

    def destroy(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGKILL)


def run(name: str, folder: Path) -> Server:
    assert (EXAMPLES / f"{name}.py").exists()
    return Server(folder)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = run("chat", tmp_path)
    yield server
    server.destroy()


@asynccontextmanager
async def tab(server: Server) -> AsyncIterator[Tab]:
    """A browser's tab: connections of its own."""
    async with httpx.AsyncClient(base_url=server.address, timeout=PATIENCE) as client:
        yield Tab(client)


class Tab:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def say(self, text: str) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """Send a message; gives the events as they arrive. Leaving the block disconnects."""
        async with self._client.stream("POST", "/chats/ada", json={"text": text}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield events(response)

    async def answer(self, text: str) -> list[tuple[str, str]]:
        async with self.say(text) as answer:
            return [each async for each in answer]

    async def _get(self, path: str) -> object:
        response = await self._client.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def history(self) -> list[tuple[str, str, bool]]:
        """Who said what, and whether it is complete."""
        found = await self._get("/chats/ada")
        assert isinstance(found, list)
        return [(each["role"], each["text"], each.get("complete", True)) for each in found]

    async def status(self) -> dict[str, object]:
        found = await self._get("/chats/ada/status")
        assert isinstance(found, dict)
        return found

    async def reaches(self, **wanted: object) -> None:
        """Ask for the status until it is as wanted."""
        async with asyncio.timeout(PATIENCE):
            while not wanted.items() <= (await self.status()).items():
                continue

    async def stop(self) -> bool:
        return bool((await self._client.post("/chats/ada/stop")).json()["stopped"])


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: ")).get("text", "")


async def take(answer: AsyncIterator[tuple[str, str]], count: int) -> list[str]:
    """The next words, each of which must come as an event of its own."""
    words = []
    for _ in range(count):
        name, word = await anext(answer)
        assert name == "word"
        words.append(word.strip())
    return words


def interrupted(message: tuple[str, str, bool], seen: list[str]) -> None:
    """It is the beginning of the long answer, whole words and no fewer than were seen, and says that it isn't all."""
    role, text, complete = message
    assert (role, complete) == ("assistant", False)
    assert text.split() == ANSWER[: len(text.split())]
    assert text.endswith(" ")
    assert len(seen) <= len(text.split()) < len(ANSWER)
    assert seen == ANSWER[: len(seen)]


async def test_words_arrive_one_by_one_while_the_answer_is_written(server):
    await server.start()
    async with tab(server) as one, tab(server) as other:
        async with one.say(LONG) as answer:
            assert await take(answer, 3) == ANSWER[:3]
            status = await other.status()
            assert status["writing"]
            assert 3 <= status["words"] < len(ANSWER)
            more = await take(answer, 5)
            assert more == ANSWER[3:8]
            assert await other.stop()
        assert await one.answer("hello there") == [
            ("word", "2: "),
            ("word", "hello "),
            ("word", "there "),
            ("done", ""),
        ]
        assert await other.status() == {"writing": False, "words": 0, "waiting": 0}
        assert (await other.history())[-2:] == [("user", "hello there", True), ("assistant", "2: hello there ", True)]


async def test_the_stop_button_ends_the_answer_and_keeps_what_was_shown(server):
    await server.start()
    async with tab(server) as one, tab(server) as other:
        assert not await other.stop()  # nothing to stop is no error
        async with one.say(LONG) as answer:
            seen = await take(answer, 4)
            assert await other.stop()
            rest = [each async for each in answer]
        assert rest[-1] == ("stopped", "")
        seen += [word.strip() for _, word in rest[:-1]]
        question, kept = await one.history()
        assert question == ("user", LONG, True)
        interrupted(kept, seen)
        assert await one.answer("go on") == [("word", "2: "), ("word", "go "), ("word", "on "), ("done", "")]
        assert (await other.history())[1] == kept


async def test_a_closed_tab_ends_its_answer(server):
    await server.start()
    async with tab(server) as other:
        async with tab(server) as one, one.say(LONG) as answer:
            seen = await take(answer, 4)
        await other.reaches(writing=False)
        question, kept = await other.history()
        assert question == ("user", LONG, True)
        interrupted(kept, seen)
        assert (await other.answer("hello"))[-1] == ("done", "")
    assert "Traceback" not in server.log


async def test_a_second_tab_waits_its_turn_and_both_see_one_history(server):
    await server.start()
    async with tab(server) as one, tab(server) as other, tab(server) as third:
        async with one.say(LONG) as answer:
            seen = await take(answer, 2)
            second = asyncio.create_task(other.answer("and me"))
            await third.reaches(writing=True, waiting=1)
            assert [role for role, _, _ in await other.history()] == ["user", "assistant"]  # it doesn't wait to look
            seen += await take(answer, 2)
            assert not second.done()
            await third.stop()
        assert await second == [("word", "2: "), ("word", "and "), ("word", "me "), ("done", "")]
        history = await one.history()
        assert history == await other.history() == await third.history()
        interrupted(history[1], seen)
        assert history[2:] == [("user", "and me", True), ("assistant", "2: and me ", True)]


async def test_a_tab_that_is_closed_while_it_waits_leaves_nothing(server):
    await server.start()
    async with tab(server) as one, tab(server) as third, one.say(LONG) as answer:
        await take(answer, 1)
        async with tab(server) as other, other.say("never mind"):
            await third.reaches(waiting=1)
        await third.reaches(waiting=0)
        assert await third.stop()
        await third.reaches(writing=False)
        assert [role for role, _, _ in await third.history()] == ["user", "assistant"]


async def test_a_crash_in_mid_stream_keeps_every_word_that_was_seen_and_nothing_half(server):
    await server.start()
    async with tab(server) as one, one.say(LONG) as answer:
        seen = await take(answer, 6)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        with contextlib.suppress(httpx.TransportError):
            async for name, word in answer:  # what was on its way counts as seen
                assert name == "word"
                seen.append(word.strip())
    await server.start()
    async with tab(server) as one:
        assert await one.status() == {"writing": False, "words": 0, "waiting": 0}
        question, kept = await one.history()
        assert question == ("user", LONG, True)
        interrupted(kept, seen)
        assert (await one.answer("hello"))[0] == ("word", "2: ")
        assert [complete for _, _, complete in await one.history()] == [True, False, True, True]


async def test_a_deploy_in_mid_stream_cuts_the_answer_and_ends_cleanly(server):
    await server.start()
    async with tab(server) as one, one.say(LONG) as answer:
        seen = await take(answer, 3)
        assert await asyncio.to_thread(server.end, signal.SIGTERM) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in server.log
    await server.start()
    async with tab(server) as one:
        interrupted((await one.history())[1], seen)


async def test_the_page_is_served(server):
    await server.start()
    async with httpx.AsyncClient(base_url=server.address) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for path in re.findall(r"path \+ \"(/\w+)\"", page.text):
            assert (await client.request("POST" if path == "/stop" else "GET", f"/chats/ada{path}")).status_code == 200
