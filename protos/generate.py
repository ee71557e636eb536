"""Generate the package elman_protos from the .proto files beside it; `make protos` calls this.

protoc names a Python module after the path of its .proto file. That path is `elman/v1`, and in Python `elman` is the
client, so the generated imports are rewritten to `elman_protos.v1`. The wire is not affected.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent
_MODULE = re.compile(r"\belman\.v1(?=\.\w+_pb2| import \w+_pb2)")


def generate(package: Path, *, stubs: bool = True) -> list[Path]:
    """Write the generated modules into `package`/v1.

    Args:
        package: the folder of the package elman_protos.
        stubs: whether to write type stubs (.pyi), which needs mypy-protobuf on PATH.

    Returns:
        The written files.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("elman/v1/*.proto"))
    services = [source for source in sources if source.endswith("_service.proto")]
    with tempfile.TemporaryDirectory() as scratch:
        messages = [f"--python_out={scratch}", *([f"--mypy_out=quiet:{scratch}"] if stubs else [])]
        calls = [f"--grpc_python_out={scratch}", *([f"--mypy_grpc_out=quiet:{scratch}"] if stubs else [])]
        for outputs, inputs in ((messages, sources), (calls, services)):
            command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *outputs, *inputs]
            subprocess.run(command, cwd=PROTOS, check=True, timeout=60)
        written = []
        for made in sorted(Path(scratch).glob("elman/v1/*.py*")):
            path = package / "v1" / made.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_MODULE.sub("elman_protos.v1", made.read_text()))
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if shutil.which("protoc-gen-mypy") is None:
        sys.exit("protoc-gen-mypy is not on PATH: pip install mypy-protobuf")
    for path in generate(PROTOS / "elman_protos"):
        print(path)


if __name__ == "__main__":
    main()
