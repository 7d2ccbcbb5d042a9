"""Ray Serve with a deployment that does nothing; its edge is set up in the environment."""

import os
import sys
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

HOST = "127.0.0.1"


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Nothing:
    async def __call__(self, request: Request) -> JSONResponse:
        submission = await request.json()
        return JSONResponse({"n": submission["n"]}, status_code=202)


def main() -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=200_000_000,
        _node_ip_address=HOST,
        _temp_dir=os.environ["PEER_FOLDER"],
    )
    serve.start(http_options=serve.HTTPOptions(host=HOST, port=int(sys.argv[1])))
    serve.run(Nothing.bind(), name="peers", route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
