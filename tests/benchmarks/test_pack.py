"""The benchmark of packs says what it measured, and goes on where memory runs out."""

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import pack
from tests.benchmarks.packs import host_time, steps
from tests.benchmarks.packs.steps import OUT_OF_MEMORY, Setting, alone_losses, encoded, load, make_trial
from trainer.models.base_model import BaseModel
from trainer.models.lora import add_adapter, remove_adapter

ONE, TWO = Setting(1, 1, 32), Setting(2, 1, 16)
LEAST = 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(models: Path) -> BaseModel:
    return load("dry", "fp32", models)


@pytest.fixture(scope="module", autouse=True)
def _quick_collection(base: BaseModel) -> Iterator[None]:
    """Memory is collected after every line: not what was there before, which takes a quarter of a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def loaded(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's model is there already."""
    monkeypatch.setattr(pack, "load", lambda *of: base)


def lines(models: Path, *settings: Setting) -> list[pack.Line]:
    return list(pack.lines("dry", "fp32", settings, models, LEAST, pack.Clock(None)))


def test_alone_has_the_same_loss_and_gradient_with_logits_of_all_positions_and_of_some(base: BaseModel) -> None:
    trial = make_trial(0, "fp32", Setting(1, 2, 16))
    _ = base.output
    model: Any = add_adapter(base.model, trial.lora, "completion", base.heads, trial.seed)
    scored: list[int] = []
    hook = base.model.get_output_embeddings().register_forward_hook(
        lambda module, given, output: scored.append(output.numel() // output.shape[-1])
    )
    try:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        losses = [of() for of in alone_losses(base, model, encoded(16)[:2])]
        gradients = [torch.autograd.grad(loss, trained) for loss in losses]
    finally:
        hook.remove()
        remove_adapter(model)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert scored == [2 * 16, 2 * 4], "the loss is on a quarter of a row"


def test_a_pack_of_one_is_always_measured_and_packing_is_not_credited_with_fewer_logits(
    loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack, "fastest", lambda *of: 1e9)
    monkeypatch.setattr(pack, "alone", lambda *of: steps.Alone(peft=3.0, loss_positions=2.0))
    monkeypatch.setattr(steps, "seconds", lambda work, device, least: work() or 0.5)
    out = tmp_path / "figures" / "pack.json"
    chosen = ["--shapes", "dry", "--precisions", "fp32", "--slots", "2", "--rows", "1", "--tokens", "16"]
    assert pack.main([*chosen, "--least", "0.001", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["lines"]
    assert [of["setting"]["slots"] for of in figures] == [1, 2]
    assert [(of["over_peft"], of["by_packing"]) for of in figures] == [(6.0, 4.0), (12.0, 8.0)]
    assert [of["tokens_per_second"] for of in figures] == [32.0, 64.0]
    assert [of["packed"]["measured"] is not None for of in figures] == [False, True]
    printed = capsys.readouterr().out
    assert "over PEFT  by packing" in printed
    assert [line.split()[3:8] for line in printed.splitlines() if line.endswith("auto")][1:] == [
        ["32", "5", "8", "6.00", "4.00"],
        ["64", "5", "8", "12.00", "8.00"],
    ]


STAGES = {  # stage → where it is done
    "loading": (pack, "load"),
    "ceiling": (pack, "fastest"),
    "alone": (pack, "alone"),
    "probe": (steps, "measure"),
    "adding slots": (steps, "make_slot"),
    "memory of one slot": (steps, "kept_bytes"),
    "packed": (steps, "seconds"),
}
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "host": MemoryError(),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
}


def once(real: Callable[..., Any], error: Exception, held: list[Any], at: int = 0) -> Callable[..., Any]:
    """A function whose call number ``at`` fails, with a tensor in its frame."""
    calls: list[int] = []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at + 1:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise error
        return real(*arguments, **options)

    return fails


@pytest.mark.parametrize(("stage", "kind"), [*((stage, "cuda") for stage in STAGES), *(("packed", k) for k in ERRORS)])
def test_out_of_memory_in_any_stage_is_said_in_its_line_and_the_next_follows(
    stage: str, kind: str, loaded: None, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = STAGES[stage]
    held: list[Any] = []
    with monkeypatch.context() as patch:
        real = getattr(module, name)
        if stage == "packed":  # the same function times steps alone, which are not this stage
            patch.setattr(pack, "alone", lambda *of: steps.Alone(1.0, 1.0))
            patch.setattr(pack, "fastest", lambda *of: 1.0)
        earlier = int(stage == "adding slots")  # the probe has a slot too
        patch.setattr(module, name, once(real, ERRORS[kind], held, earlier))
        found = lines(models, TWO, ONE)
    assert found[0].failed == {stage: OUT_OF_MEMORY}
    assert OUT_OF_MEMORY in found[0].text()
    assert not found[0].broken
    gc.collect()
    assert [ref() for ref in held] == [None]
    if stage == "loading":
        assert len(found) == 1
        assert lines(models, ONE)[0].packed.seconds
        return
    expected = {} if stage != "ceiling" else found[0].failed
    assert (found[1].failed, found[1].packed.seconds is not None) == (expected, True)
    if stage in ("alone", "probe", "memory of one slot", "ceiling"):
        assert found[0].packed.seconds, "what does not need it is measured all the same"
    else:
        assert found[0].over_peft is None


def test_slots_that_run_out_of_memory_in_a_step_end_the_line_not_the_benchmark(
    loaded: None, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pack, "alone", lambda *of: steps.Alone(1.0, 1.0))
        patch.setattr(torch.autograd, "backward", tight)
        [line] = lines(models, TWO)
    assert line.failed["packed"] == OUT_OF_MEMORY
    assert line.packed.seconds is None


def test_another_error_is_named_and_shows_in_the_exit_status(
    loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "alone", once(pack.alone, ValueError("no such thing"), []))
    out = tmp_path / "pack.json"
    chosen = ["--shapes", "dry", "--precisions", "fp32", "--slots", "1", "--rows", "1", "--tokens", "16", "32"]
    assert pack.main([*chosen, "--least", "0.001", "--out", str(out)]) == 1
    figures = json.loads(out.read_text())["lines"]
    assert [of["failed"] for of in figures] == [{"alone": "ValueError: no such thing"}, {}]


def test_the_settings_that_say_most_come_first() -> None:
    ordered = pack.informative(pack.all_settings([2, 8], [1, 2, 4], [64, 256]))
    first = [(s.slots, s.rows, s.tokens) for s in ordered]
    assert first[:2] == [(8, 1, 64), (1, 1, 64)]
    assert set(first[:8]) == {(k, n, t) for k in (1, 8) for n in (1, 4) for t in (64, 256)}, "the corners"
    assert all(2 in (slots, rows) for slots, rows, _ in first[8:]), "what lies between"
    assert sorted(first) == sorted((k, n, t) for k in (1, 2, 8) for n in (1, 2, 4) for t in (64, 256))


def test_what_does_not_fit_the_time_is_left_out_and_named(
    loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(pack.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pack, "_measure", lambda *of: now.__setitem__(0, now[0] + 100.0))
    chosen = ["--shapes", "dry", "--precisions", "fp32", "--slots", "1", "2", "4", "--rows", "1", "--tokens", "16"]
    out = tmp_path / "pack.json"
    assert pack.main([*chosen, "--minutes", "4", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [of["setting"]["slots"] for of in content["lines"]] == [4, 1], "two lines of 100 s fit four minutes"
    assert content["left_out"] == ["dry fp32 K=2 1×16"]
    assert "left out: dry fp32 K=2 1×16" in capsys.readouterr().out


def test_each_shape_and_precision_gets_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pack.time, "monotonic", lambda: now[0])
    clock = pack.Clock(10)
    first = clock.share(4)
    assert first.allows(150, "a")
    assert not first.allows(151, "b")
    now[0] = 300.0
    assert clock.share(3).allows(100, "c")
    assert clock.left_out == ["b"]


def test_the_hosts_time_of_a_step_is_measured_without_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "host.json"
    chosen = ["--shapes", "dry", "--slots", "3", "--rows", "1", "--tokens", "16"]
    assert pack.main([*chosen, "--host", "--out", str(out)]) == 0
    one, three = json.loads(out.read_text())["host"]
    assert one["milliseconds"] > 0
    assert one["further"] is None
    assert three["each"] == pytest.approx(three["milliseconds"] / 3)
    assert three["further"] == pytest.approx((three["milliseconds"] - three["one_slot"]) / 2)
    assert "a further slot" in capsys.readouterr().out


def test_reading_a_value_is_counted_and_nothing_of_pytorch_stays_changed() -> None:
    before = (torch.Tensor.item, torch.Tensor.tolist, torch.is_autocast_enabled, torch.equal)
    with host_time.values_known() as waits:
        there = torch.zeros(2, device="meta")
        assert there.tolist() == [1.0, 1.0]
        assert there.sum().item() == 1.0
        assert torch.zeros(1).item() == 0.0, "the CPU's tensors are real"
        assert torch.equal(torch.ones(1), torch.zeros(1)) is False
    assert waits == ["tolist", "item"]
    assert before == (torch.Tensor.item, torch.Tensor.tolist, torch.is_autocast_enabled, torch.equal)
