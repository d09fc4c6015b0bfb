"""Results that one process computes for all processes."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def from_main_process(accelerator: Accelerator, compute: Callable[[], Result]) -> Result:
    """Run `compute` in the main process and hand its result to every process.

    Raises:
        RuntimeError: in the other processes, if `compute` failed in the main one, so that no process waits forever.
    """
    if accelerator.num_processes == 1:
        return compute()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            told[0] = compute()
        except Exception as error:
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    broadcast_object_list(told, from_process=0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise RuntimeError(f"The main process failed: {told[1]}")
    result: Result = told[0]
    return result
