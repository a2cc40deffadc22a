"""The price of an instance hour: from a file, from AWS' Price List, or from the table that is shipped with shardkit."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from shardkit.jobs.errors import JobError
from shardkit.jobs.shipped_prices import DATED, REGION, USD

if TYPE_CHECKING:
    from collections.abc import Mapping

PRICE_LIST_REGION = "us-east-1"  # the Price List answers in only a few regions, for all of them


class KnownPrices:
    """Prices by instance type, the same for Processing and training jobs.

    Args:
        usd: US dollars an hour, such as ``{"ml.m5.xlarge": 0.25}``.
        about: Where they are from, in words.
    """

    def __init__(self, usd: Mapping[str, float], *, about: str = "as given") -> None:
        self._usd = dict(usd)
        self.about = about

    @classmethod
    def shipped(cls, *, today: datetime.date | None = None) -> KnownPrices:
        """The table that is shipped: common types on demand, in one region, on one day; ``about`` tells its age."""
        months = ((today or datetime.datetime.now(datetime.timezone.utc).date()) - DATED).days // 30
        age = f"{months // 12} years and {months % 12} months" if months >= 24 else f"{max(months, 0)} months"
        about = f"on demand in {REGION} as of {DATED:%B %Y}, from a table that is {age} old; `aws` asks for today's"
        return cls(USD, about=about)

    @classmethod
    def from_file(cls, path: str) -> KnownPrices:
        """The prices in a JSON file.

        Raises:
            JobError: It cannot be read, or has something else in it.
        """
        try:
            usd = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"{path} cannot be read as a file of prices: {error}.", hint=_hint(path)) from None
        numbers = list(usd.values()) if isinstance(usd, dict) else [None]
        if any(isinstance(n, bool) or not isinstance(n, int | float) or not 0 <= n < math.inf for n in numbers):
            raise JobError(f"{path} has no prices by instance type.", hint=_HINT)
        return cls(usd, about=f"from {path}")

    def usd_per_hour(self, instance_type: str, kind: str) -> float | None:
        """The price of that type; None if it is not among them."""
        return self._usd.get(instance_type)


_HINT = 'Write JSON such as {"ml.m5.xlarge": 0.25}, in US dollars an hour.'


def _hint(path: str) -> str:
    """What to do; ``--prices pipeline.yaml`` takes the pipeline for the prices."""
    return f"{_HINT} If {path} is a pipeline, give it first." if path.endswith((".yaml", ".yml")) else _HINT


class ListPrices:
    """The on-demand prices in AWS' Price List; each is asked for once. This needs ``pricing:GetProducts``.

    Args:
        client: boto3's ``pricing`` client.
        region: Where the instances run.
    """

    def __init__(self, client: Any, region: str) -> None:
        self._client, self._region = client, region
        self.about = f"on demand in {region}, from AWS' Price List as of today"
        self._prices: dict[tuple[str, str], float | None] = {}

    @classmethod
    def of_session(cls, session: Any, region: str = "") -> ListPrices:
        """The prices in the session's region, or in another one.

        Raises:
            JobError: No region is known.
        """
        priced_region = region or session.region_name
        if not priced_region:
            raise JobError("Prices differ from region to region, and none is set.", hint="Set AWS_DEFAULT_REGION.")
        return cls(session.client("pricing", region_name=PRICE_LIST_REGION), priced_region)

    def usd_per_hour(self, instance_type: str, kind: str) -> float | None:
        """The price of that type; None if the list has none.

        Raises:
            JobError: The list cannot be asked.
        """
        if not instance_type:
            return None
        if (instance_type, kind) not in self._prices:
            self._prices[instance_type, kind] = self._ask(instance_type, kind)
        return self._prices[instance_type, kind]

    def _ask(self, instance_type: str, kind: str) -> float | None:
        facts = {"regionCode": self._region, "component": kind.capitalize(), "instanceName": instance_type}
        filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in facts.items()]
        prices: set[float] = set()
        arguments: dict[str, Any] = {"ServiceCode": "AmazonSageMaker", "Filters": filters}
        while True:
            try:
                answer = self._client.get_products(**arguments)
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                raise JobError(
                    f"AWS' Price List does not answer: {error}.",
                    hint="Allow pricing:GetProducts, or give a file of prices.",
                ) from None
            for text in answer["PriceList"]:
                prices |= _hourly(text)
            if not answer.get("NextToken"):
                return max(prices, default=None)
            arguments["NextToken"] = answer["NextToken"]


def _hourly(product: str) -> set[float]:
    """The on-demand prices of a product, in US dollars an hour; empty if it is free or paid in another way."""
    terms = json.loads(product).get("terms", {}).get("OnDemand", {}).values()
    dimensions = [each for term in terms for each in term.get("priceDimensions", {}).values()]
    hourly = [each for each in dimensions if each.get("unit", "").lower() in {"hrs", "hours", "hour"}]
    prices = {float(each.get("pricePerUnit", {}).get("USD", 0)) for each in hourly}
    return {price for price in prices if price > 0}


def prices_at(place: str, *, region: str = "") -> KnownPrices | ListPrices:
    """Prices from a place: a JSON file, ``aws`` for AWS' Price List, or ``shipped`` for the table of common types.

    Raises:
        JobError: They cannot be had from there.
    """
    if place == "shipped":
        return KnownPrices.shipped()
    if place != "aws":
        return KnownPrices.from_file(place)
    import boto3

    return ListPrices.of_session(boto3.Session(), region)
