"""The instances of a local job find each other by the names that the service gives them."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from engine_jobs import ended, request

from shardkit.engines import isolation
from shardkit.engines.local import LocalEngine, available_isolation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
# Each instance listens at its own name, at one port; the first asks the second, and prints all addresses.
TALK = """
import json, socket, time
about = json.load(open("/opt/ml/config/resourceconfig.json"))
here, (first, second) = about["current_host"], about["hosts"]
addresses = {name: socket.gethostbyname(name) for name in (*about["hosts"], "localhost")}
if here == second:
    with socket.create_server((here, 47613)) as server:
        server.accept()[0].sendall(here.encode())
else:
    while True:
        try:
            with socket.create_connection((second, 47613), timeout=10) as connection:
                answer = connection.makefile().read()
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    open("/opt/ml/output/message", "w").write(json.dumps([answer, addresses]))
"""


@pytest.mark.whole
@pytest.mark.parametrize("kind", [*isolation.KINDS, isolation.BUBBLEWRAP])
def test_instances_find_each_other(tmp_path: Path, kind: str) -> None:
    if os.geteuid() != 0 and kind in ("pid", "mount"):
        pytest.skip("takes root")
    if kind == isolation.BUBBLEWRAP and shutil.which("bwrap") is None:
        pytest.skip("is not installed")
    engine = LocalEngine(tmp_path / "engine")
    engine.isolation = kind
    (tmp_path / "talk.py").write_text(TALK)
    engine.create_processing_job(**request("talk", "python3", str(tmp_path / "talk.py"), instances=2))
    about = ended(engine, "talk")
    assert about["ProcessingJobStatus"] == "Completed", list(engine.log_lines("talk"))
    answer, addresses = json.loads(about["ExitMessage"])
    assert answer == "algo-2"
    assert addresses.pop("localhost") == "127.0.0.1"
    assert len(set(addresses.values())) == 2
    assert all(address.startswith("127.") for address in addresses.values())
    with open("/etc/hosts", encoding="utf-8") as file:
        assert "algo-2" not in file.read()
