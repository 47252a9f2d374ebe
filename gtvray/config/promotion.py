"""Settings of the promotion gate."""

from __future__ import annotations

from pydantic import Field

from gtvray.config.base import Section


class PromotionConfig(Section):
    """What a candidate must show on held-out cases."""

    min_difference_low: float = Field(
        0.0, ge=-1, le=1, description="paired lower bound of the DSC difference to the baseline must exceed this"
    )
    min_cases: int = Field(3, ge=3, description="fewer held-out cases decide nothing")
