"""What every route is built from: one value, made once by `create_app`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from cluster.follow import Follower
from cluster.store.contract import Objects
from jobs.errors import NotFound
from service.api_settings import ApiSettings
from service.auth import Authenticator, Caller, Scope, TokenStore, credentials
from service.catalog import Catalog
from service.metrics import Metrics
from service.ports import Gateway
from service.submission import Submissions

__all__ = ["Api", "job_id_of"]

JOB_ID_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Api:
    """The parts of one API process."""

    gateway: Gateway
    catalog: Catalog
    store: Objects
    settings: ApiSettings
    tokens: TokenStore
    authenticator: Authenticator
    submissions: Submissions
    metrics: Metrics
    follower: Follower

    def caller(self, *scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
        """Return a dependency: who is asking, who must have one of `scopes` if any are given."""

        async def identify(request: Request) -> Caller:
            headers = dict(request.scope["headers"])
            caller = await self.authenticator.identify(credentials(headers, request.method))
            if scopes:
                caller.need(*scopes)
            return caller

        return identify


def job_id_of(job_id: str) -> str:
    """Return the id if it can be one; NotFound otherwise, without asking anybody."""
    if len(job_id) > JOB_ID_LENGTH_MAX or not job_id.replace("-", "").isalnum():
        raise NotFound("job", job_id[:JOB_ID_LENGTH_MAX])
    return job_id
