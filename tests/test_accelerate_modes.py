"""Swapped models compiled, under autocast, from the meta device, and in several processes."""

from __future__ import annotations

import copy
import datetime
import os
from typing import Any

import pytest
import torch
from torch import nn

import msformer_fast as mf
from tests.harness.differences import assert_same
from tests.harness.networks import batch, loss_of, net, results

pytestmark = pytest.mark.usefixtures("drop_ins_compute")


def test_compiled_swapped_models() -> None:
    """No graph break; one more compilation for other (odd) sizes."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = net("MS-Former").double()
    mf.accelerate(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for size in ((19, 23), (25, 17), (33, 29)):
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        ours = {name.removeprefix("_orig_mod."): value for name, value in results(compiled, image).items()}
        assert_same(ours, results(model, image), 1e-9)
    assert counter.frame_count <= 2


def test_autocast() -> None:
    """Dtypes as before; gradients in the parameters'."""
    model, image = net(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        want = model(image)
        mf.accelerate(model)
        got = model(image)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.05)
    got.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_on_the_meta_device() -> None:
    """Parameters without numbers: the trial draws its own."""
    with torch.device("meta"):
        model = net()
    assert len(mf.accelerate(model)) == 13
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert torch.isfinite(model(batch())).all()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("order", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_distributed_data_parallel(order: str, tmp_path: Any) -> None:
    """Two processes, each with half of a batch: the gradients of the whole."""
    model = net("SegFormer").double()
    image = batch().double()
    loss_of(copy_ := copy.deepcopy(model), image).backward()
    torch.save((model, image), tmp_path / "given.pt")
    torch.multiprocessing.spawn(_worker, (str(tmp_path), order), nprocs=2)
    got = torch.load(tmp_path / "gradients.pt")
    for name, parameter in copy_.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-12)


def _worker(rank: int, folder: str, order: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = datetime.timedelta(minutes=2)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", timeout=patience, rank=rank, world_size=2)
    model, image = torch.load(f"{folder}/given.pt", weights_only=False)
    if order == "before":
        assert len(mf.accelerate(model)) == 4
    parallel = nn.parallel.DistributedDataParallel(model)
    if order == "after":
        assert len(mf.accelerate(parallel)) == 4
    loss_of(parallel, image[rank : rank + 1]).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
