"""Agents behind FastAPI: a lifespan, a dependency, and a websocket that holds its agent live while it is open.

    uvicorn web:app                               # or: python web.py
    curl -X POST 'localhost:8000/rooms/tea' -H 'content-type: application/json' -d '{"text": "hello"}'

Needs fastapi, uvicorn and websockets. With several worker processes (`uvicorn --workers 4`) pass `shared=True` and
`superseded="retry"` to the manager: each worker is then one of several owners of the same file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from overwinter import Agent, InstanceManager, SQLiteStore, readonly


class Message(BaseModel):
    text: str


class Room(Agent):
    messages: list[Message] = []

    async def say(self, message: Message) -> int:
        self.messages.append(message)
        return len(self.messages)

    @readonly
    async def last(self, count: int) -> list[Message]:
        return self.messages[-count:]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    store = SQLiteStore(os.environ.get("ROOMS_DB", "rooms.db"))
    async with InstanceManager(Room, store=store, idle_timeout=60) as rooms:
        app.state.rooms = rooms
        yield  # the server serves; then it stops, and closing stores what is left


app = FastAPI(lifespan=lifespan)


def get_rooms(connection: HTTPConnection) -> InstanceManager[Room]:
    rooms: InstanceManager[Room] = connection.app.state.rooms
    return rooms


async def get_room(room: str, rooms: Annotated[InstanceManager[Room], Depends(get_rooms)]) -> Room:
    """The agent of this path, as a reference: each request calls it, none has to hold it."""
    return await rooms.get(room)


Rooms = Annotated[InstanceManager[Room], Depends(get_rooms)]
ThisRoom = Annotated[Room, Depends(get_room)]


@app.post("/rooms/{room}")
async def say(agent: ThisRoom, message: Message) -> dict[str, int]:
    return {"messages": await agent.say(message)}


@app.get("/rooms/{room}")
async def last(agent: ThisRoom, count: int = 10) -> list[Message]:
    return await agent.last(count)


@app.get("/stats")
async def stats(rooms: Rooms) -> dict[str, int]:
    return {"live": rooms.stats().live, "attached": rooms.stats().attached}


@app.websocket("/rooms/{room}")
async def talk(socket: WebSocket, room: str, rooms: Rooms) -> None:
    """Attached while the socket is open. Leaving the block detaches, whichever way it is left."""
    async with rooms.attach(room) as agent:
        await socket.accept()
        try:
            while True:
                # Waiting for what comes in is also how a server learns that the other side has gone.
                text = await socket.receive_text()
                await socket.send_json({"messages": await agent.say(Message(text=text))})
        except WebSocketDisconnect:
            pass


async def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, ws="websockets-sansio")).serve()


if __name__ == "__main__":
    asyncio.run(main())
