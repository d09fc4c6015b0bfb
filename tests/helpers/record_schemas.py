"""Record the schemas of PyTorch's operators that the package calls, for each supported release of torch.

    python tests/helpers/record_schemas.py 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0 > tests/data/operator_schemas.json

Downloads each release (some 400 MB) and reads one file of its wheel. The wheels for aarch64 are the smallest.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

NAMES = (
    "_flash_attention_forward",
    "_flash_attention_backward",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
DECLARATIONS = "torchgen/packaged/ATen/native/native_functions.yaml"


def schemas_of(release: str) -> list[str]:
    """Return the schemas of `NAMES` in a release of torch, as its source declares them."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        command += ["--python-version", "3.12", "--platform", "manylinux_2_28_aarch64", f"torch=={release}"]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            text = archive.read(DECLARATIONS).decode()
    return [re.findall(rf"^- func: ({name}\(.*)$", text, re.MULTILINE)[0] for name in NAMES]


if __name__ == "__main__":
    json.dump({release: schemas_of(release) for release in sys.argv[1:]}, sys.stdout, indent=1)
    print()
