"""``lorasweep export``: a trial's adapter, or the model with the adapter merged in, for plain PEFT or transformers."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis import fast_yaml
from analysis.errors import FolderError, ModelError, refuse_uri
from analysis.folder import SweepFolder, TrialFolder, fetch_folder, usual_modes
from analysis.leaderboard import leaderboard
from analysis.leaderboard.seeds import best_seed, spread
from analysis.rows import best_trial
from sweeps.store.manifest import read_manifest
from trainer.models.model_files import tensors

CARD = "lorasweep.json"  # beside the weights: what one needs to know to use them


def export(run_dir: str, trial_id: str | None, to: str, merge: bool) -> None:
    """Write an adapter, or a merged model, to a new folder.

    Args:
        run_dir: the sweep folder.
        trial_id: the trial, or a further seed (``t0003.1``); None takes the best completed one, of a configuration of
            several seeds the best seed.
        to: a folder that does not exist yet, or is empty.
        merge: write the whole model in float32 with the adapter merged into it.

    Raises:
        FolderError: where there is no such trial or adapter, or ``to`` is in use.
        ModelError: for an adapter that is not whole.
    """
    refuse_uri("--to ", to)
    folder, target = SweepFolder.open(run_dir), Path(to).absolute()
    manifest = read_manifest(folder)
    best = None if trial_id else _best(folder)
    files = _with_adapter(folder, best_seed(best).trial_id if best else str(trial_id), run_dir)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise FolderError(f"--to {target}: there is something already. Give a folder that does not exist yet.")
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if merge:
            _merge(files.adapter_dir, manifest, beside)
        else:
            shutil.copytree(files.adapter_dir, beside, symlinks=True)  # never through a link
        card = _card(manifest, files)
        (beside / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        usual_modes(beside)
        if target.exists():
            target.rmdir()
        beside.rename(target)
    except OSError as error:
        raise FolderError(
            f"--to {target}: cannot be written ({error.strerror or error}). Choose another place."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(f"{'Merged model' if merge else 'Adapter'} of {files.trial_id} in {target}")
    if best is not None and len(best.seeds) > 1:
        print(
            f"{files.trial_id} is the best of {len(best.seeds)} seeds of {best.trial_id}"
            f" ({best_seed(best).objective:.3f}); expect what they have on average:"
            f" {best.objective:.3f} ± {spread(best):.3f}"
        )
    print("\nLoad it:")
    print(_loading_code(files, card, target, merge))


def _with_adapter(folder: SweepFolder, trial_id: str, run_dir: str) -> TrialFolder:
    """The files of a trial whose adapter is whole. Raises FolderError or ModelError where there is none."""
    files = folder.trial(trial_id)
    if not files.root.is_dir():
        known = ", ".join(trial.trial_id for trial in folder.trials()) or "none"
        raise FolderError(f"{folder.where}: no trial '{trial_id}'. There are: {known}.")
    fetch_folder(files.adapter_dir)
    if not (files.adapter_dir / "adapter_config.json").exists():
        status = files.read_status()
        why = f": {status.reason}" if status.reason else ""
        why += "" if why or status.step == 0 else " (search.keep_adapters keeps those of the best trials)"
        raise FolderError(
            f"trial {trial_id} has no adapter, it is {status.state}{why}. `lorasweep rank {run_dir}` shows the others."
        )
    tensors(files.adapter_dir / "adapter_model.safetensors")
    _check_kind(files.adapter_dir / "adapter_config.json")
    return files


def _check_kind(file: Path) -> None:
    """Raises ModelError for an adapter that is not LoRA: PEFT imports and fetches what configs of other kinds name."""
    try:
        config = json.loads(file.read_text())
        kind, imports = config["peft_type"], config.get("megatron_config")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: cannot be read ({error}). Restore it from a copy.") from None
    if kind != "LORA" or imports:
        raise ModelError(f"{file}: peft_type={kind}, megatron_config={imports}: no LoRA adapter that lorasweep wrote.")


def _loading_code(files: TrialFolder, card: Mapping[str, Any], target: Path, merged: bool) -> str:
    """The Python lines that load what was written, at the precision that the trial was trained at."""
    task = "CausalLM" if card["task"] == "completion" else "SequenceClassification"
    place = str(target)
    if merged:
        lines = [
            f"from transformers import AutoModelFor{task}",
            f"model = AutoModelFor{task}.from_pretrained({place!r})",
        ]
        if card["precision"] != "fp32":
            lines.append(f"# trained at precision={card['precision']}: merged in float32, a few predictions may differ")
        return "\n".join(f"  {line}" for line in lines)
    adapter = json.loads((files.adapter_dir / "adapter_config.json").read_text())
    base, arguments = adapter["base_model_name_or_path"], ["dtype=torch." + card["dtype"]]
    lines, imports = ["import torch", "from peft import PeftModel"], [f"AutoModelFor{task}"]
    if task == "SequenceClassification":
        lines.insert(0, "import json")
        imports.append("AutoTokenizer")
    if card["precision"] in ("nf4", "int8"):
        imports.append("BitsAndBytesConfig")
        arguments.append("quantization_config=quantized")
    lines.append(f"from transformers import {', '.join(imports)}")
    if task == "SequenceClassification":
        lines.append(f"card = json.load(open({str(target / CARD)!r}))")
        arguments += ["id2label=dict(enumerate(card['labels']))", "ignore_mismatched_sizes=True"]
    if card["precision"] in ("nf4", "int8"):
        kept = ["lm_head", *(adapter["modules_to_save"] or ())]
        how = f"bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.{card['dtype']}"
        how = f"load_in_4bit=True, {how}" if card["precision"] == "nf4" else "load_in_8bit=True, llm_int8_threshold=0.0"
        lines.append(f"quantized = BitsAndBytesConfig({how}, llm_int8_skip_modules={kept!r})")
    lines.append(f"base = AutoModelFor{task}.from_pretrained({base!r}, {', '.join(arguments)})")
    if card["precision"] == "nf4" and card["dtype"] == "float32":
        lines.append("for module in base.modules():  # else bitsandbytes rounds to bf16 on CPUs that have it")
        lines.append("    module.support_avx512bf16_for_cpu = False")
    if task == "SequenceClassification":
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({base!r})")
        if card["pad_token_id"] is not None:  # of a sweep before 0.2 it is not known
            lines.append("tokenizer.pad_token_id = base.config.pad_token_id = card['pad_token_id']")
    lines.append(f"model = PeftModel.from_pretrained(base, {place!r}).eval()")
    return "\n".join(f"  {line}" for line in lines)


def _best(folder: SweepFolder) -> leaderboard.Row:
    best = best_trial(leaderboard.build(folder))
    if best is None:
        raise FolderError(
            f"{folder.where}: no trial has completed with a score. Name one, such as one that was stopped early:"
            f" lorasweep export {folder.where} TRIAL --to DIR"
        )
    return best


def _card(manifest: dict[str, Any], files: TrialFolder) -> dict[str, Any]:
    """The content of ``lorasweep.json``: what one needs to know to use the weights."""
    config = fast_yaml.load(files.config_file.read_text())
    rows = files.read_metrics()
    return {
        "sweep": manifest["name"],
        "trial_id": files.trial_id,
        "task": config["task"]["name"],
        "prompt": config["task"]["prompt"] if config["task"]["name"] == "completion" else None,
        "max_length": config["data"]["max_length"],
        "labels": manifest["data"]["labels"],
        "precision": config["precision"],
        "dtype": manifest["data"].get("dtype") or ("bfloat16" if config["precision"] == "bf16" else "float32"),
        "pad_token_id": manifest["data"].get("pad_token_id"),
        "model": config["model"],
        "metrics": rows[-1].metrics if rows else {},
    }


def _merge(adapter: Path, manifest: dict[str, Any], to: Path) -> None:
    """Write the merged model. In float32: merging into quantised weights would round the adapter away."""
    from trainer.preload import import_libraries

    import_libraries()
    import torch
    from peft import PeftModel

    from trainer.config import ModelConfig
    from trainer.models.base_model import load_base

    config, labels = manifest["config"], manifest["data"]["labels"]
    base = load_base(ModelConfig(**config["model"]), "fp32", config["task"]["name"], labels, torch.device("cpu"))
    merged: Any = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(str(to))
    base.tokenizer.save_pretrained(str(to))
