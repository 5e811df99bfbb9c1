"""List the packages of the container image for scanners, as CycloneDX, while it is built.

python k8s/write_sbom.py --file /opt/venv/sbom.json
"""

import json
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from brewclip.config import exit_on_user_error, parse_options


@dataclass(frozen=True)
class SbomOptions:
    """Where the list goes."""

    file: Path
    """JSON file to write."""


def build_sbom() -> dict[str, Any]:
    """Return the installed distributions as a CycloneDX document."""
    found = sorted({(one.metadata["Name"], one.version) for one in distributions() if one.metadata["Name"]})
    components = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name.lower()}@{version}"}
        for name, version in found
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def main() -> None:
    """Write the file."""
    with exit_on_user_error():
        options = parse_options(__doc__, SbomOptions)
    options.file.write_text(json.dumps(build_sbom(), indent=1))


if __name__ == "__main__":
    main()
