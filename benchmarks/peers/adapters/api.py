"""A FastAPI that enqueues what is posted, with the adapter `PEER_ADAPTER`, or with none."""

import contextlib
import importlib
import inspect
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from pydantic import BaseModel

NAME = os.environ["PEER_ADAPTER"]
adapter = importlib.import_module(NAME) if NAME else None


class Submission(BaseModel):
    n: int
    payload: str


@contextlib.asynccontextmanager
async def opened(_: FastAPI) -> AsyncIterator[None]:
    opening = adapter.open() if hasattr(adapter, "open") else None
    if inspect.isawaitable(opening):
        await opening
    yield


app = FastAPI(lifespan=opened)


@app.post("/jobs", status_code=202)
async def submit(submission: Submission) -> dict[str, int]:
    # Celery's call blocks. In a thread (`def`) it would not hold others up, but is slower here.
    enqueued = adapter.enqueue(submission.n) if adapter else None
    if inspect.isawaitable(enqueued):
        await enqueued
    return {"n": submission.n}
