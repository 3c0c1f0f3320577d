"""The usual stack of scripts/bench score, as one would write it well: FastAPI, redis.asyncio, the model's own library.

``create_app`` is started by uvicorn; what it needs is in the variable SCORE_ORDER as JSON. The features come from a Redis
hash that holds the fifty values already computed (``features: redis``), or from Feast's feature server (``features: feast``).
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import lightgbm
import numpy as np
import redis.asyncio
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ScoreRequest(BaseModel):
    """Which card to score."""

    card_id: str


class ScoreResponse(BaseModel):
    """Its score."""

    card_id: str
    score: float


def create_app() -> FastAPI:
    """Return the application."""
    order = json.loads(os.environ["SCORE_ORDER"])
    names: list[str] = order["names"]
    booster = lightgbm.Booster(model_file=order["model"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.redis = redis.asyncio.Redis.from_url(order["redis"], protocol=2)
        app.state.feast = httpx.AsyncClient(base_url=order.get("feast", ""), timeout=30.0)
        yield
        await app.state.redis.aclose()
        await app.state.feast.aclose()

    async def from_redis(request: Request, card_id: str) -> list[float]:
        row: dict[bytes, bytes] = await request.app.state.redis.hgetall(f"features:{card_id}")
        if not row:
            raise HTTPException(404, "unknown card")
        return [float(row.get(name, "nan")) for name in encoded]

    async def from_feast(request: Request, card_id: str) -> list[float]:
        body = {"feature_service": "cards", "entities": {"card_id": [card_id]}}
        answer = (await request.app.state.feast.post("/get-online-features", json=body)).json()
        found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        values: list[Any] = [found[name]["values"][0] for name in names]
        return [float("nan") if value is None else value for value in values]

    encoded = [name.encode() for name in names]
    features = from_feast if order["features"] == "feast" else from_redis
    app = FastAPI(lifespan=lifespan)

    @app.post("/score")
    async def score(body: ScoreRequest, request: Request) -> ScoreResponse:
        row = np.array([await features(request, body.card_id)])
        return ScoreResponse(card_id=body.card_id, score=float(booster.predict(row, num_threads=1)[0]))

    return app
