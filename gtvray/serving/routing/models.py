"""The registered models of an endpoint: a request names one of them, or uses the default model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from gtvray.errors import NotFoundError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.versions.served import Served


class ServedModels:
    """The models of an endpoint by name; each follows its own champion.

    Args:
        served: the models, the default first.
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = {each.name: each for each in served}
        self.default = served[0]

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def of(self, name: str | None) -> Served:
        """Return a model by name; None returns the default model.

        Raises:
            NotFoundError: this endpoint does not serve it.
        """
        if name is None:
            return self.default
        if name not in self._served:
            raise NotFoundError(
                "this endpoint does not serve that model",
                where="model",
                expected=", ".join(self._served),
                found=name,
                do="use one of these models, or add it to serving.further_models of the endpoint",
            )
        return self._served[name]

    def in_use(self, app: str) -> int:
        """Number of requests in progress that belong to a version."""
        return sum(each.in_use(app) for each in self)

    @property
    def looked_at(self) -> float:
        """Monotonic time of the last background check, of the model whose check is oldest."""
        return min(each.looked_at for each in self)

    async def refresh_forever(self) -> None:
        """Refresh the state of every model until cancelled."""
        await asyncio.gather(*(each.refresh_forever() for each in self))


def serve_models(args: AppArguments, model: Any, app: str) -> ServedModels:
    """Return the models specified by the arguments.

    Args:
        args: the application's arguments.
        model: handle of the Model deployment of the default model, if it does not follow versions.
        app: Serve application of that deployment.
    """
    further = [
        Served(args.model_copy(update={"model_name": name, "versions": versions}), None)
        for name, versions in args.further_models.items()
    ]
    return ServedModels([Served(args, model, app), *further])
