"""Objects that a store refuses: one costs its record, with advice; if all are refused, the run ends at once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
from crashing import check_ledger
from fault_proxy import FaultProxy
from test_object_store import Bucket, bucket, keys_of, project, run_here  # noqa: F401  fixtures too

import shardkit as sk

if TYPE_CHECKING:
    import http.server
    from collections.abc import Callable, Iterator

    from job_runs import JobProject

    Refuse = Callable[[str], "Refusal | None"]

pytestmark = pytest.mark.whole
Refusal = tuple[int, str, str]

SSE_C = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided"
REFUSALS: dict[str, tuple[Refusal, str]] = {
    "archived": ((403, "InvalidObjectState", "not valid for the object's storage class"), "is in an archive.*Restore"),
    "archived-there": ((409, "BlobArchived", "not permitted on an archived blob"), "is in an archive.*Restore it"),
    "others": ((403, "AccessDenied", "Access Denied"), "another account.*ask its owner"),
    "key-sent-along": ((400, "InvalidRequest", SSE_C), r"\(SSE-C\).*Ask its owner for a copy"),
    "key-disabled": ((400, "KMS.DisabledException", "arn:aws:kms:k is disabled."), "Have the key enabled"),
    "key-going": ((400, "KMS.KMSInvalidStateException", "k is pending deletion."), "its deletion cancelled"),
    "key-gone": ((400, "KMS.NotFoundException", "Key 'k' does not exist"), "with a KMS key that cannot be used"),
    "key-denied": ((403, "AccessDenied", "not authorized to perform: kms:Decrypt on k"), "role, kms:Decrypt"),
    "odd": ((405, "MethodNotAllowed", "The specified method is not allowed"), "not given out, though other objects"),
}


@pytest.fixture
def refusing(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Refuse], FaultProxy]]:
    """Refuse the reading of objects, by their keys."""
    with FaultProxy(urlsplit(s3_url).port or 0) as proxy, proxy.running() as url:

        def begin(refuse: Refuse) -> FaultProxy:
            def gate(request: http.server.BaseHTTPRequestHandler) -> Refusal | None:
                key = unquote(request.path.partition("?")[0]).split("/", 2)[-1]
                return refuse(key) if request.command == "GET" and key.startswith("in/") else None

            proxy.gate = gate
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            return proxy

        yield begin


def test_an_object_that_is_refused_costs_its_record_and_tells_the_cure(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    refusing: Callable[[Refuse], FaultProxy],
) -> None:
    bucket.put_all({f"in/{name}.txt": "go" for name in REFUSALS} | {f"in/well-{i}.txt": "go" for i in range(3)})
    refusing(lambda key: REFUSALS[key[3:-4]][0] if key[3:-4] in REFUSALS else None)
    run = run_here(project, bucket, max_failures="100%")
    assert check_ledger(run).records["quarantined"] == len(REFUSALS)
    assert keys_of(run) == [f"well-{i}.txt" for i in range(3)]
    failures = run.failures().set_index("key")
    assert set(failures["error"]) == {"ObjectRefused"}
    for name, (_, cure) in REFUSALS.items():
        assert failures["message"].str.match(f"(?s).*{cure}")[f"{name}.txt"], failures["message"][f"{name}.txt"]
    refusing(lambda _: None)  # restored, and allowed
    assert check_ledger(run.retry(quiet=True)).records["quarantined"] == 0


def test_a_record_of_several_objects_fails_with_one_of_them(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    refusing: Callable[[Refuse], FaultProxy],
) -> None:
    bucket.put_all({f"in/{name}.{kind}": "go" for name in "abc" for kind in ("dat", "txt")})
    refusing(lambda key: (403, "AccessDenied", "Access Denied") if key == "in/b.dat" else None)
    run = run_here(project, bucket, records="stem", pattern="*.txt", max_failures=1)
    assert run.failures()["key"].tolist() == ["b"]
    assert keys_of(run) == ["a", "c"]


@pytest.mark.parametrize("count", [1, 40])
def test_where_none_is_given_out_the_run_ends_at_once(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    refusing: Callable[[Refuse], FaultProxy],
    count: int,
) -> None:
    bucket.put_all({f"in/{i:02d}.txt": "go" for i in range(count)})
    refusing(lambda key: (403, "AccessDenied", "Access Denied") if key.endswith(".txt") else None)
    with pytest.raises(sk.StorageError, match="is denied.*Give yourself, or the job's role, the permission"):
        run_here(project, bucket, max_failures="100%")
    run = sk.open_run(f"{bucket.uri}/out")
    assert run.summary().records["quarantined"] == 0
    refusing(lambda _: None)
    assert check_ledger(run.resume(quiet=True)).records["done"] == count


def test_what_is_taken_away_midway_is_nobody_s_fault(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    refusing: Callable[[Refuse], FaultProxy],
) -> None:
    bucket.put_all({f"in/{i:02d}.txt": "go" for i in range(40)})
    given: set[str] = set()

    def revoke(key: str) -> Refusal | None:
        if key.endswith(".txt"):
            given.add(key)
        return (403, "AccessDenied", "Access Denied") if len(given) > 20 and key.endswith(".txt") else None

    refusing(revoke)
    with pytest.raises(sk.StorageError, match="is denied"):
        run_here(project, bucket, max_failures="100%")
    assert sk.open_run(f"{bucket.uri}/out").summary().records["quarantined"] == 0


@pytest.mark.whole
def test_a_job_whose_input_the_service_brings_fails_and_goes_on_by_reading_it_itself(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    refusing: Callable[[Refuse], FaultProxy],
) -> None:
    bucket.put_all({f"in/{i}.txt": "go" for i in range(3)})
    refusing(lambda key: REFUSALS["archived"][0] if key == "in/1.txt" else None)
    pipeline = sk.Pipeline(
        name="work",
        function="work:features",
        source_dir=project.code,
        input=f"{bucket.uri}/in/",
        output=f"{bucket.uri}/out",
        input_mode="download",
        requirements_mode="none",
        max_failures=1,
    )
    with pytest.raises(sk.RunFailed, match=r"(?s)1 attempt: ClientError: .*is in an archive.*input_mode='stream'"):
        pipeline.run(project.local(), quiet=True)
    run = sk.open_run(f"{bucket.uri}/out").resume(quiet=True, input_mode="stream")
    assert run.failures()["error"].tolist() == ["ObjectRefused"]
    assert check_ledger(run).records["done"] == 2
