"""Bundles with an edited manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elman_bundle import MANIFEST, Bundle, load_bundle
from elman_bundle.bundle_folder import write_bundle

Change = Callable[[dict[str, Any]], object]


def change(folder: Path, edit: Change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def reseal(folder: Path) -> Bundle:
    """Update the checksums of a changed bundle, so that only the graph itself can be invalid."""
    from google.protobuf import json_format

    from elman_protos import v1

    spec = json_format.Parse((folder / MANIFEST).read_text(), v1.ModelSpec())
    write_bundle(folder, spec)
    return load_bundle(folder)
