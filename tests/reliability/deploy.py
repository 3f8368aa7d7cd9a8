"""One agent class in three releases: run as ``python deploy.py RELEASE OPTIONS``, OPTIONS being JSON.

It does one call for each line on stdin, ``METHOD ARGUMENTS`` with the arguments as JSON, and says how that ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
from worker import order, say

from overwinter import Agent, InstanceManager, OverwinterError, SQLiteStore, readonly, upcast


@dataclass
class Visit:
    by: str


class Old(Agent, name="profile"):
    name: str = ""
    visits: int = 0
    nicknames: list[str] = []  # the next release does without
    log: list[Visit] = []

    async def visit(self, by: str) -> int:
        self.visits += 1
        self.log.append(Visit(by))
        return self.visits

    async def nickname(self, text: str) -> None:
        self.nicknames.append(text)

    async def rename(self, name: str) -> None:
        self.name = name

    @readonly
    async def read(self) -> Any:
        return [self.name, self.visits, self.nicknames, [visit.by for visit in self.log]]


@dataclass
class RemarkedVisit:
    by: str
    remark: str = ""


class New(Agent, name="profile"):
    """The same version: a field more, and one less."""

    name: str = ""
    visits: int = 0
    log: list[RemarkedVisit] = []
    colours: dict[str, str] = {}

    async def visit(self, by: str) -> int:
        self.visits += 1
        self.log.append(RemarkedVisit(by))
        return self.visits

    async def remark(self, text: str) -> None:
        self.log.append(RemarkedVisit("new", text))

    @readonly
    async def remarks(self) -> list[str]:
        return [visit.remark for visit in self.log]

    async def paint(self, what: str, colour: str) -> None:
        self.colours[what] = colour

    @readonly
    async def read(self) -> Any:
        return [self.name, self.visits, self.colours, [visit.by for visit in self.log]]


class Second(Agent, name="profile", version=2):
    """A field has another form, which older code must not write over."""

    first: str = ""
    last: str = ""
    visits: int = 0
    log: list[Visit] = []

    @upcast(since=1)
    @staticmethod
    def _names_are_split(old: dict[str, Any]) -> dict[str, Any]:
        first, _, last = old["name"].partition(" ")
        return {**{name: value for name, value in old.items() if name != "name"}, "first": first, "last": last}

    async def visit(self, by: str) -> int:
        self.visits += 1
        self.log.append(Visit(by))
        return self.visits

    @readonly
    async def read(self) -> Any:
        return [self.first, self.last, self.visits, [visit.by for visit in self.log]]


class Song(msgspec.Struct):
    title: str


class LongSong(msgspec.Struct):
    title: str
    minutes: int = 0


class Photo(pydantic.BaseModel):
    title: str


class WidePhoto(pydantic.BaseModel):
    title: str
    minutes: int = 0


@attrs.define
class Film:
    title: str


@attrs.define
class LongFilm:
    title: str
    minutes: int = 0


class Talk(TypedDict):
    title: str


class LongTalk(TypedDict):
    title: str
    minutes: NotRequired[int]


class OldAlbum(Agent, name="album"):
    """Objects of several sorts, of which the next release has a field more."""

    song: Song = msgspec.field(default_factory=lambda: Song(""))
    photos: list[Photo] = []
    films: dict[str, Film] = {}
    talks: tuple[Talk, ...] = ()

    async def entitle(self, text: str) -> None:
        self.song.title = text
        for item in (*self.photos, *self.films.values()):
            item.title = text
        for talk in self.talks:
            talk["title"] = text


class NewAlbum(Agent, name="album"):
    song: LongSong = msgspec.field(default_factory=lambda: LongSong(""))
    photos: list[WidePhoto] = []
    films: dict[str, LongFilm] = {}
    talks: tuple[LongTalk, ...] = ()

    async def fill(self, minutes: int) -> None:
        self.song = LongSong("", minutes)
        self.photos.append(WidePhoto(title="", minutes=minutes))
        self.films[str(minutes)] = LongFilm("", minutes)
        self.talks += (LongTalk(title="", minutes=minutes),)

    @readonly
    async def read(self) -> Any:
        items = [self.song, *self.photos, *self.films.values()]
        return [[i.title, i.minutes] for i in items] + [[t["title"], t.get("minutes")] for t in self.talks]


RELEASES: dict[str, type[Agent]] = {
    "old": Old, "new": New, "second": Second, "old album": OldAlbum, "new album": NewAlbum
}  # fmt: skip


async def main(release: str, path: str) -> None:
    kind = RELEASES[release]
    async with InstanceManager(kind, store=SQLiteStore(path), shared=True, superseded="retry") as profiles:
        say("ready")
        while (line := await order()) != "end":
            key, method, arguments = line.split(" ", 2)
            try:
                reply = await profiles.call(key, getattr(kind, method), *json.loads(arguments))
            except OverwinterError as error:
                say("failed", type(error).__name__)
            else:
                say("reply", json.dumps(reply))
    say("ended")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], **json.loads(sys.argv[2])))
