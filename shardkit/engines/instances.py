"""Instance types: how many CPUs and how much memory each has, and whether there is one of that name."""

from __future__ import annotations

import difflib
import functools
import re

TYPE = r"ml\.[a-z][a-z0-9-]*\.(?:medium|large|\d*xlarge|metal(?:-\d+xl)?)"
SMALL = {"medium": 2, "large": 2}  # Processing's only medium is of the t3 family, which has two
ODD = {"ml.c4.8xlarge": 36}
METAL = 96  # what most whole machines have at least
GIB_PER_VCPU = {"t": 4, "m": 4, "c": 2, "r": 8, "x": 16}  # by the first letter of the family
ODD_GIB = {"ml.t3.medium": 4}


def instance_vcpus(instance_type: str) -> int:
    """The vCPUs of an instance type such as ``ml.m5.4xlarge``, from its name.

    Raises:
        ValueError: this is no name of an instance type.
    """
    if not re.fullmatch(TYPE, instance_type):
        raise ValueError(not_a_type(instance_type))
    size = instance_type.rpartition(".")[2]
    times = re.fullmatch(r"(?:metal-)?(\d*)xl(?:arge)?", size)
    usual = 4 * int(times[1] or 1) if times else SMALL.get(size, METAL)
    return ODD.get(instance_type, usual)


def instance_memory_bytes(instance_type: str) -> int | None:
    """The memory of an instance type, from its name; None if the name does not say it."""
    family = re.match(r"ml\.([a-z]+)", instance_type)
    per_vcpu = GIB_PER_VCPU.get(family[1]) if family else None
    if per_vcpu is None:
        return None
    return ODD_GIB.get(instance_type, per_vcpu * instance_vcpus(instance_type)) << 30


def not_a_type(name: str) -> str:
    """The message about a name that no instance type can have."""
    guess = f"; did you mean ml.{name}?" if re.fullmatch(TYPE, f"ml.{name}") else ", such as ml.m5.xlarge."
    return f"{name!r} is no instance type{guess}"


def nearest(name: str, types: frozenset[str]) -> str | None:
    """The type that ``name`` was meant to be; None if it is one, or if its family is not among ``types``.

    A family that is missing there may be newer than the list.
    """
    family = name.rpartition(".")[0]
    relatives = sorted(other for other in types if other.rpartition(".")[0] == family)
    if name in types or not relatives:
        return None
    return (difflib.get_close_matches(name, relatives, n=1) or relatives)[0]


def larger_than(name: str, types: frozenset[str], *, most: int) -> tuple[str, ...]:
    """The next larger types of the same family, the next first, at most so many; a size larger has twice the memory."""
    family, vcpus = name.rpartition(".")[0], instance_vcpus(name)
    relatives = [other for other in types if other.rpartition(".")[0] == family and "metal" not in other]
    return tuple(sorted((each for each in relatives if instance_vcpus(each) > vcpus), key=instance_vcpus)[:most])


@functools.cache
def known_types(jobs: str) -> frozenset[str]:
    """The instance types for ``processing`` or ``training`` jobs that botocore knows; the service may know more."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    return frozenset(getattr(model.shape_for(f"{jobs.capitalize()}InstanceType"), "enum", ()))
