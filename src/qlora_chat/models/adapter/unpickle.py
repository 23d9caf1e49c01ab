"""Program of its own: one pickled adapter in, one safetensors file out.

Scope: the only place that reads a pickle, and only through PyTorch's restricted unpickler (weights_only). It imports
nothing of this package, so that it runs in isolation, limits itself to what a file of that size can need, and refuses with
one line on standard error.
"""

import os
import resource
import sys
from typing import Any, NoReturn

SLACK = 512 * 1024**2
"""Bytes of memory besides the tensors: the library's own, and small files."""
CPU_SECONDS = 300
ENDINGS = (".weight", ".bias", ".trainable_tokens_delta")
"""Of heads, embeddings, norms, biases and tokens that an adapter may bring besides its LoRA."""


def main(source: str, target: str) -> None:
    """Read the pickle `source`, check that it is a plain table of adapter tensors, write safetensors to `target`."""
    import torch
    from safetensors.torch import save_file

    size = os.path.getsize(source)
    try:
        table = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as problem:
        refuse(f"it cannot be read as plain tensors ({first_line(problem)})")
    if not isinstance(table, dict):
        refuse(f"it holds a {type(table).__name__}, but must hold a table of tensors by name")
    if not any(isinstance(name, str) and "lora_" in name for name in table):
        refuse("it holds no LoRA weight" + ("" if table else ": its table is empty, as old scripts saved it by mistake"))
    total = sum(value.numel() * value.element_size() for value in table.values() if isinstance(value, torch.Tensor))
    if total > size:
        refuse(f"its {size:,} bytes would become {total:,} (one number stands for many)")
    tensors = {name: checked(name, value) for name, value in table.items()}
    save_file(tensors, target, metadata={"format": "pt"})


def limit_resources(size: int) -> None:
    """Leave this process memory, CPU time and disk for a file of `size` bytes, and no further process or thread."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: in_use + 3 * size + SLACK,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: size + SLACK,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def checked(name: Any, value: Any) -> Any:
    """The tensor, in memory of its own, if name and value are those of an adapter."""
    import torch

    if not isinstance(name, str) or not ("lora_" in name or name.endswith(ENDINGS)):
        refuse(f"it holds {name!r}, which is no weight of an adapter")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        refuse(f"{name} is no plain floating-point tensor")
    return value.detach().clone(memory_format=torch.contiguous_format)


def first_line(problem: BaseException) -> str:
    """PyTorch's reason for refusing, without its page of advice on how to read the file anyway."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    blunt = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    return (blunt or type(problem).__name__)[:200]


def refuse(reason: str) -> NoReturn:
    """End with the reason on standard error and status 3."""
    print(reason, file=sys.stderr)
    raise SystemExit(3)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    limit_resources(os.path.getsize(sys.argv[1]))
    main(sys.argv[1], sys.argv[2])
