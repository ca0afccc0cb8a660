"""A desk that refuses every event until the file DLQ_MENDED names is there, and whoever else hears of it.

Rows have no key: an effect that is repeated is there twice.
"""

import os
import sqlite3

from choreo import App, Event, Reject, Service


class Asked(Event, type="dlq.asked", version=1, topic="asked", key="who"):
    number: int
    who: str


class Booked(Event, type="dlq.booked", version=1, topic="booked", key="who"):
    number: int
    who: str


desk, hall = Service("desk"), Service("hall")
TABLES = {"desk": ("booked", "noted"), "hall": ("seen", "heard")}


@desk.on_start
def desk_tables(db: sqlite3.Connection) -> None:
    for table in TABLES["desk"]:
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER)")


@hall.on_start
def hall_tables(db: sqlite3.Connection) -> None:
    for table in TABLES["hall"]:
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER)")


@desk.handler(Asked)
def book(asked: Asked, db: sqlite3.Connection) -> Booked:
    if not os.path.exists(os.environ.get("DLQ_MENDED", "")):
        raise Reject("the book is lost" if asked.number % 10 else "the pen is lost")
    db.execute("INSERT INTO booked VALUES (?)", (asked.number,))
    return Booked(number=asked.number, who=asked.who)


@desk.handler(Asked)
def note(asked: Asked, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO noted VALUES (?)", (asked.number,))


@hall.handler(Asked)
def see(asked: Asked, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO seen VALUES (?)", (asked.number,))


@hall.handler(Booked)
def hear(booked: Booked, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO heard VALUES (?)", (booked.number,))


app = App(desk, hall)
