"""What every config section shares: frozen, and no unknown key."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One room's settings; its fields are the dotted keys of CLI, YAML, search space and MLflow."""

    # NaN passes every bound that is a comparison, and neither it nor infinity can be written as JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
