"""What a benchmark may be asked for, and what is said when the machine cannot do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from upop.runs.bench_conditions import DTYPES, Conditions, explained, processor


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch find this many GPUs."""

    def find(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return find


def test_auto_takes_a_gpu_where_there_is_one(gpus: Any) -> None:
    gpus(0)
    assert Conditions().place() == torch.device("cpu")
    gpus(2)
    assert Conditions().place() == torch.device("cuda")
    assert Conditions("cuda:1").place() == torch.device("cuda", 1)
    assert Conditions("cpu").place() == torch.device("cpu")


@pytest.mark.parametrize(("found", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there(gpus: Any, found: int, device: str) -> None:
    gpus(found)
    message = f"device is '{device}', but torch finds {found} GPUs here; take 'cpu' or 'auto'"
    with pytest.raises(ValueError, match=message):
        Conditions(device).place()


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(ValueError, match=r"unknown device '.*'; known: \['auto', 'cpu', 'cuda', 'cuda:N'\]") as caught:
        Conditions(device).place()
    assert repr(device) in str(caught.value)


def test_unknown_dtype() -> None:
    message = r"unknown dtype 'pf16'; known: \['fp32', 'bf16', 'fp16'\]; did you mean '(fp16|bf16)'\?"
    with pytest.raises(ValueError, match=message):
        Conditions(dtype="pf16")
    assert {DTYPES[name].itemsize for name in ("bf16", "fp16")} == {2}


@pytest.mark.parametrize(
    ("sizes", "given"), [([0], "0"), ([8, -1], "-1"), ([], r"\[\]"), ([2.5], "2.5"), ([True], "True")]
)
def test_batch_sizes(sizes: list[Any], given: str) -> None:
    with pytest.raises(ValueError, match=f"batch size is {given}; give one whole number from 1 up, or several"):
        Conditions(batch_sizes=sizes)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"seconds is {seconds}; give more than 0"):
        Conditions(seconds=seconds)


def test_the_processor_has_the_name_that_the_system_knows() -> None:
    name = processor()
    assert name
    if Path("/proc/cpuinfo").is_file() and "model name" in (text := Path("/proc/cpuinfo").read_text()):
        assert f": {name}\n" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried\nto"),
            r"no memory for a batch of 9 of clip on cpu: .*smaller",
        ),
        (MemoryError(), "no memory for a batch of 9 of clip on cpu"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "no memory for a batch"),
        (
            RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"),
            "clip cannot compute in fp16 on cpu: \"addmm_impl_cpu_\" not implemented for 'Half'; take another dtype",
        ),
    ],
)
def test_what_torch_says_becomes_one_line(error: Exception, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught, explained("clip", Conditions("cpu", "fp16"), "a batch of 9"):
        raise error
    assert "\n" not in str(caught.value)


def test_other_faults_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="a fault"), explained("clip", Conditions("cpu"), "a batch of 9"):
        raise RuntimeError("a fault of ours")
