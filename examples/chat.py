"""A chat with a language model behind FastAPI: words are sent as they come, and any tab may stop the answer.

    python chat.py                                # then open http://127.0.0.1:8000 in two tabs
    curl -N localhost:8000/chats/ada -H 'content-type: application/json' -d '{"text": "hello"}'

What is kept: each word is stored before it is sent. So whatever ends an answer early (the stop button, a closed tab, a
crash of this program), the history holds every word that anybody saw, in a message with `complete=False`. To keep whole
answers only, collect the words in a local variable and append the message at the end.

Needs fastapi and uvicorn. The model is a fake one. Set CHATS_DB, PORT and CHAT_PAUSE (seconds for a word) to taste.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from overwinter import Agent, InstanceManager, OverwinterError, SQLiteStore, commit, interleave, transient
from overwinter.errors import TurnCancelledError


class UserMessage(BaseModel):
    role: Literal["user"] = "user"
    text: str


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    text: str = ""
    complete: bool = False


class Status(BaseModel):
    writing: bool
    words: int


class FakeModel:
    """Stands in for the client of a language model. It repeats what it heard, after the number of the message."""

    def __init__(self, pause: float) -> None:
        self._pause = pause

    async def answer(self, history: Sequence[UserMessage | AssistantMessage]) -> AsyncGenerator[str, None]:
        heard = [message.text for message in history if isinstance(message, UserMessage)]
        for word in (f"{len(heard)}:", *heard[-1].split()):
            await asyncio.sleep(self._pause)
            yield word + " "


class Chat(Agent, name="chat"):
    history: list[UserMessage | AssistantMessage] = []
    model: FakeModel = transient()
    writing: bool = transient()

    async def on_start(self, model: FakeModel) -> None:
        self.model, self.writing = model, False

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        """Answer, a word at a time. A second tab's message waits until this answer ends."""
        self.history.append(UserMessage(text=text))
        await commit()  # the question is kept, whatever becomes of the answer
        question, answer = list(self.history), AssistantMessage()
        self.writing = True
        try:
            async with aclosing(self.model.answer(question)) as words:  # leaving the block hangs up on the model
                async for word in words:
                    if not answer.text:
                        self.history.append(answer)
                    answer.text += word
                    yield word  # leaves when it is stored
        finally:
            self.writing = False
        answer.complete = True

    @interleave  # it doesn't wait for the answer that is being written, and may show a word that is being stored
    async def read(self) -> list[UserMessage | AssistantMessage]:
        return list(self.history)

    @interleave
    async def status(self) -> Status:
        last = self.history[-1] if self.history else None
        answered = self.writing and isinstance(last, AssistantMessage)
        return Status(writing=self.writing, words=len(last.text.split()) if last and answered else 0)


# ---------------------------------------------------------------- the web


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    store = SQLiteStore(os.environ.get("CHATS_DB", "chats.db"))
    model = FakeModel(float(os.environ.get("CHAT_PAUSE", "0.1")))
    async with InstanceManager(Chat, store=store, idle_timeout=60, context=model) as chats:
        app.state.chats = chats
        yield


app = FastAPI(lifespan=lifespan)


def get_chats(request: Request) -> InstanceManager[Chat]:
    chats: InstanceManager[Chat] = request.app.state.chats
    return chats


Chats = Annotated[InstanceManager[Chat], Depends(get_chats)]


async def get_chat(chat: str, chats: Chats) -> Chat:
    """Thawed before the response begins, so that a chat that can't be read is a proper error."""
    return await chats.get(chat)


ThisChat = Annotated[Chat, Depends(get_chat)]


def event(name: str, **data: str) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def events(agent: Chat, text: str) -> AsyncIterator[str]:
    """The answer as server-sent events. When the client disconnects this is cancelled, and leaving ends the turn."""
    try:
        async with aclosing(agent.say(text)) as words:
            async for word in words:
                yield event("word", text=word)
    except TurnCancelledError:
        yield event("stopped")
    except OverwinterError as error:  # it is too late for a status code
        yield event("failed", error=type(error).__name__)
    else:
        yield event("done")


@app.post("/chats/{chat}")
async def say(agent: ThisChat, message: UserMessage) -> StreamingResponse:
    return StreamingResponse(events(agent, message.text), media_type="text/event-stream")


@app.get("/chats/{chat}")
async def read(agent: ThisChat) -> list[UserMessage | AssistantMessage]:
    return await agent.read()


@app.get("/chats/{chat}/status")
async def status(agent: ThisChat, chat: str, chats: Chats) -> dict[str, int | bool]:
    return {**(await agent.status()).model_dump(), "waiting": chats.inspect(chat).queued}


@app.post("/chats/{chat}/stop")
async def stop(chat: str, chats: Chats) -> dict[str, bool]:
    return {"stopped": chats.cancel(chat)}


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("chat.html"))


async def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    # An answer that a deploy interrupts for longer than this is cut off, as by the stop button.
    config = uvicorn.Config(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main())
