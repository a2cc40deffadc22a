"""The kinds of values that the settings of engines have, and the network of a job."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from shardkit.engines import limits


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004  pydantic wants a ValueError
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


NoTruth = BeforeValidator(_no_truth)
Count = Annotated[int, NoTruth]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Key = Annotated[str, AfterValidator(limits.checked_key)]


class Model(BaseModel):
    """Values that belong together; unknown ones are refused."""

    # A traceback in a notebook must not print the values of the environment.
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


class Network(Model):
    """The network of a job, in the words of the SDKs' NetworkConfig."""

    subnets: Names = ()
    security_group_ids: Names = ()
    enable_network_isolation: bool = False
    encrypt_inter_container_traffic: bool | None = None

    @model_validator(mode="after")
    def _whole_vpc(self) -> Network:
        if bool(self.subnets) != bool(self.security_group_ids):
            raise ValueError("a VPC takes both subnets and security_group_ids.")
        if len(self.subnets) > 16 or len(self.security_group_ids) > 5:
            raise ValueError("SageMaker takes at most 16 subnets and 5 security groups.")
        return self

    def request(self) -> dict[str, Any]:
        """NetworkConfig of the request."""
        config: dict[str, Any] = {"EnableNetworkIsolation": self.enable_network_isolation}
        if self.encrypt_inter_container_traffic is not None:
            config["EnableInterContainerTrafficEncryption"] = self.encrypt_inter_container_traffic
        if self.subnets:
            config["VpcConfig"] = {"SecurityGroupIds": list(self.security_group_ids), "Subnets": list(self.subnets)}
        return config
