"""The job queue in an account of AWS: an AWS SAM template, and the zip of its functions.

    write_deployment("deploy")      # deploy/template.yaml and deploy/shardkit-jobs.zip, for `sam deploy`

What the template says is in `shardkit.cli.sam_template`.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import yaml

from shardkit.cli.sam_template import ZIP, template
from shardkit.errors import PipelineError

TEMPLATE = "template.yaml"
# The other modules of the package that the queue's modules use.
BESIDE_JOBS = ("__init__", "_lazy", "_version", "masking", "plugins", "printable", "units", "user_state")
PACKAGE = Path(__file__).parent.parent
SAME_TIME = (1980, 1, 1, 0, 0, 0)  # the time of all files in the zip, so that the same code gives the same zip


def write_deployment(folder: str | Path) -> tuple[Path, Path]:
    """Write the template and, beside it, the zip that it names.

    Returns:
        Their paths.

    Raises:
        PipelineError: They cannot be written.
    """
    home = Path(folder)
    template, code = home / TEMPLATE, home / ZIP
    try:
        home.mkdir(parents=True, exist_ok=True)
        code.write_bytes(zipped())
        template.write_text(template_text(), "utf-8")
    except OSError as error:
        raise PipelineError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return template, code


def zipped() -> bytes:
    """The code of the functions: the queue, which needs only boto3; the same code gives the same bytes."""
    files = [*(PACKAGE / f"{name}.py" for name in BESIDE_JOBS), *sorted((PACKAGE / "jobs").glob("*.py"))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"shardkit/{file.relative_to(PACKAGE).as_posix()}", SAME_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def template_text() -> str:
    """The template as YAML."""
    note = (
        "# The job queue of shardkit, made by `shardkit jobs deploy-template`.\n"
        "# Write it with --output DIR to have the functions' code beside it, then: sam deploy --guided\n"
    )
    return note + yaml.dump(template(), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes every list and table in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is shared."""
        return True
