"""The gradient of an op for calls that skip PyTorch's dispatcher.

``torch.library.register_autograd`` serves the calls that cross it; what it does besides recording
is Python code. A call of plain tensors whose gradient is recorded needs no more than this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["recorded"]


def recorded(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> Callable[..., Any]:
    """A function that runs an op and records its gradient.

    Args:
        name: the op's name, which profiles and graphs show.
        run: runs the op; gradients are off then.
        backward: gradient formula as for ``torch.library.register_autograd``.
        setup_context: saves what `backward` needs, as there.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        setup_context(ctx, inputs=args, output=output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"{name}_function", (torch.autograd.Function,), methods)
    # Past what `Function.apply` does about transforms of torch.func, which no such call is inside.
    return super(torch.autograd.Function, function).apply
