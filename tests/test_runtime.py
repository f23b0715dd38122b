"""What `auto` comes to on machines that are not at hand, as a table."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from mnist_hydra.config import Config, settle
from mnist_hydra.errors import UserError
from mnist_hydra.runtime import DEFAULT_THREADS, Capability, choose, without_dynamo

PLAIN = Capability(cuda_devices=0, cuda_bf16=False, mps=False, cpu_bf16=False, cores=4)
FAST_CPU = dataclasses.replace(PLAIN, cpu_bf16=True)
HOPPER = dataclasses.replace(FAST_CPU, cuda_devices=2, cuda_bf16=True)
TURING = dataclasses.replace(PLAIN, cuda_devices=1)
MAC = dataclasses.replace(PLAIN, mps=True)


def config(**changes: Any) -> Config:
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return dataclasses.replace(settle(compose("config")), **changes)


@pytest.mark.parametrize(
    ("machine", "device", "precision"),
    [
        (PLAIN, "cpu", "fp32"),
        (FAST_CPU, "cpu", "bf16"),
        (HOPPER, "cuda", "bf16"),
        (TURING, "cuda", "fp32"),
        (MAC, "mps", "fp32"),
    ],
)
def test_auto_takes_cuda_then_mps_then_cpu_and_bf16_where_it_is_native(
    machine: Capability, device: str, precision: str
) -> None:
    chosen = choose(config(), machine, kernel=False)
    assert (chosen.device, chosen.precision) == (device, precision)


@pytest.mark.parametrize(
    ("machine", "changes", "named"),
    [
        (PLAIN, {"device": "cuda"}, "device=cuda"),
        (HOPPER, {"device": "cuda:2"}, "device=cuda:2"),
        (PLAIN, {"device": "mps"}, "device=mps"),
        (PLAIN, {"precision": "fp16"}, "precision=fp16"),
    ],
)
def test_what_a_machine_does_not_have_is_refused_with_what_it_has(
    machine: Capability, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match="right: auto") as error:
        choose(config(**changes), machine)
    assert str(error.value).startswith(named)


def test_a_resumed_run_keeps_what_auto_chose_at_its_start() -> None:
    recorded = {"device": "cpu", "precision": "fp32", "threads": 3}
    chosen = choose(config(), HOPPER, recorded | {"kernel": False})
    assert (chosen.device, chosen.precision, chosen.threads) == ("cpu", "fp32", 3)
    assert not chosen.kernel


def test_a_resumed_run_moves_to_another_device_where_its_own_is_missing() -> None:
    recorded = {"device": "cuda", "precision": "bf16", "compile": False, "threads": 3}
    chosen = choose(config(), PLAIN, recorded | {"kernel": False})
    assert (chosen.device, chosen.precision) == ("cpu", "bf16")


@pytest.mark.parametrize(("recorded", "threads"), [(64, 4), (4, 4), (3, 3)])
def test_a_resumed_run_takes_no_more_threads_than_there_are_cores(
    recorded: int, threads: int
) -> None:
    assert choose(config(), PLAIN, {"threads": recorded}).threads == threads


def test_a_run_takes_no_threads_after_another_of_the_same_process() -> None:
    usual, machine = torch.get_num_threads(), dataclasses.replace(PLAIN, cores=64)
    try:
        torch.set_num_threads(DEFAULT_THREADS + 1)  # as a run does that was begun with as many
        assert choose(config(), machine).threads == DEFAULT_THREADS
    finally:
        torch.set_num_threads(usual)


def test_what_is_asked_for_wins_over_what_was_recorded() -> None:
    recorded = {"device": "cuda", "precision": "bf16", "compile": True, "threads": 3}
    wanted = config(device="cpu", precision="fp32", compile=False, threads=1)
    chosen = choose(wanted, HOPPER, recorded)
    got = (chosen.device, chosen.precision, chosen.compile, chosen.threads)
    assert got == ("cpu", "fp32", False, 1)


@pytest.mark.parametrize(
    ("changes", "machine", "recorded", "wanted"),
    [
        ({}, FAST_CPU, {}, True),
        ({"precision": "fp32"}, PLAIN, {}, True),
        ({"precision": "bf16"}, FAST_CPU, {}, False),
        ({"compile": False}, FAST_CPU, {}, False),
        ({"compile": True}, PLAIN, {}, False),
        ({}, HOPPER, {}, False),
        ({}, MAC, {}, False),
        ({"device": "cpu"}, HOPPER, {}, True),
        ({}, PLAIN, {"kernel": False}, False),
    ],
)
def test_a_cpu_takes_the_kernel_where_nothing_else_was_asked_for(
    changes: dict[str, Any], machine: Capability, recorded: dict[str, Any], wanted: bool
) -> None:
    assert choose(config(**changes), machine, recorded).kernel is wanted
    assert not choose(config(**changes), machine, recorded, kernel=False).kernel


@pytest.mark.parametrize(
    ("changes", "machine", "recorded", "wanted"),
    [
        ({}, HOPPER, {}, True),
        ({"precision": "fp32"}, TURING, {}, True),
        ({"compile": False}, HOPPER, {}, False),
        ({"compile": True}, HOPPER, {}, False),
        ({"device": "cpu"}, HOPPER, {}, False),
        ({}, PLAIN, {}, False),
        ({}, MAC, {}, False),
    ],
)
def test_on_a_gpu_a_step_is_replayed_where_nothing_else_was_asked_for(
    changes: dict[str, Any], machine: Capability, recorded: dict[str, Any], wanted: bool
) -> None:
    assert choose(config(**changes), machine, recorded).replay is wanted
    assert not choose(config(**changes), machine, recorded, replay=False).replay


def test_the_kernel_computes_in_float32_whatever_the_cpu_multiplies() -> None:
    assert choose(config(), FAST_CPU, kernel=True).precision == "fp32"
    assert choose(config(), FAST_CPU, kernel=False).precision == "bf16"


STEP_ALONE = """
import sys, torch
from mnist_hydra import runtime
runtime.apply(
    runtime.Runtime(
        "{device}", "fp32", compile=False, kernel=False, replay=False, threads=1, deterministic=True
    )
)
assert torch.are_deterministic_algorithms_enabled() == ("{device}" != "cpu")
assert torch.is_deterministic_algorithms_warn_only_enabled() == ("{device}" != "cpu")
weight = torch.nn.Parameter(torch.ones(3))
optimizer = runtime.without_dynamo(torch.optim.{name})([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
assert not {{"torch._dynamo", "torch._inductor"}} & set(sys.modules)
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_eager_step_imports_no_compiler(name: str, device: str) -> None:
    script = STEP_ALONE.format(name=name, device=device)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
        (torch.optim.RMSprop, {"lr": 0.1}),
    ],
)
def test_the_step_is_torchs_own(
    kind: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    ends = []
    for optimizer in (kind, without_dynamo(kind)):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        ours = optimizer([weight], **settings)
        for _ in range(3):
            ours.zero_grad()
            (weight**3).sum().backward()
            ours.step()
        ends.append((weight.detach(), ours.state_dict()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert str(ends[0][1]) == str(ends[1][1])
