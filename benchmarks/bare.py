"""Ray and Serve as `drayman up` starts them, with nothing in them: what Drayman stands on.

`python -m benchmarks.bare --port N --store FOLDER [--edge haproxy|proxy]` speaks as `drayman up`.
"""

import argparse
import sys
from typing import Any

from service import launch

__all__ = ["main"]


def main() -> int:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--edge")
    parser.add_argument("--no-dashboard", action="store_true")
    asked = parser.parse_args()
    settings = launch.Settings(
        port=asked.port, store=asked.store, edge=asked.edge, ray_dashboard=not asked.no_dashboard
    )
    return launch.up(settings, _application, _no_cluster, lambda text: print(text, flush=True))


def _application(run: launch.Run) -> Any:
    from fastapi import FastAPI, Response
    from ray import serve

    app, headers = FastAPI(), {launch.RUN_HEADER: run.nonce}

    @app.get(launch.READY_PATH)
    async def ready() -> Response:
        return Response(headers=headers)

    deployment = serve.deployment(name="Empty", ray_actor_options={"num_cpus": 0})
    return deployment(serve.ingress(app)(Empty)).bind()


class Empty:
    """The deployment's class: it answers that it is there, and nothing else."""


def _no_cluster(run: launch.Run) -> launch.Cluster:
    return launch.Cluster(token="none", drain=lambda: None)


if __name__ == "__main__":
    sys.exit(main())
