"""What a user writes without this project: Ray Tune, OptunaSearch, Hugging Face Trainer, PEFT, Ray's W&B callback.

One of the three ways that ``sweep.py`` times. Prints one JSON line.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

CONCURRENT = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "train", "validation"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--trials", type=Path, required=True, help="JSON: a list of {rank, lr}")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=64, help="of a row at most")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


def train(config: dict[str, Any], options: dict[str, Any]) -> None:
    """Tune's function: everything is loaded anew for each trial, as such scripts do."""
    import pandas
    import torch
    from peft import LoraConfig, get_peft_model
    from ray import tune
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // CONCURRENT))
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    frames = {split: pandas.read_csv(options[split]) for split in ("train", "validation")}
    labels = sorted(frames["train"].label.unique())
    sets = {}
    for split, frame in frames.items():
        rows = tokenizer(frame.text.tolist(), truncation=True, max_length=options["tokens"])
        targets = [labels.index(label) for label in frame.label]
        sets[split] = [
            {"input_ids": ids, "attention_mask": mask, "labels": target}
            for ids, mask, target in zip(rows["input_ids"], rows["attention_mask"], targets, strict=True)
        ]
    model = AutoModelForSequenceClassification.from_pretrained(options["model"], num_labels=len(labels))
    rank = config["rank"]
    lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])

    def metrics(predictions: Any) -> dict[str, float]:
        chosen, gold = predictions.predictions.argmax(-1), predictions.label_ids
        return {"accuracy": accuracy_score(gold, chosen), "f1": f1_score(gold, chosen, average="macro")}

    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=options["steps"],
            per_device_train_batch_size=8,
            per_device_eval_batch_size=64,
            learning_rate=config["lr"],
            lr_scheduler_type="linear",
            report_to=[],
            save_strategy="no",
            bf16=options["precision"] == "bf16",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        compute_metrics=metrics,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    result = trainer.evaluate()
    tune.report({"accuracy": result["eval_accuracy"], "f1": result["eval_f1"], "log_loss": result["eval_loss"]})


def main() -> None:
    options = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in vars(arguments()).items()}
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import ray
    from ray import tune
    from ray.air.integrations.wandb import WandbLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    points = json.loads(Path(options["trials"]).read_text())
    ray.init(num_cpus=CONCURRENT, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_parameters(train, options=options),
        param_space={"rank": tune.choice([4, 8, 16, 32]), "lr": tune.loguniform(1e-5, 1e-2)},
        tune_config=tune.TuneConfig(
            num_samples=len(points),
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(seed=0, points_to_evaluate=points),
            max_concurrent_trials=CONCURRENT,
        ),
        run_config=tune.RunConfig(
            storage_path=tempfile.mkdtemp(), verbose=0, callbacks=[WandbLoggerCallback(project="plain")]
        ),
    )
    results = tuner.fit()
    print(json.dumps([{**result.config, **{k: result.metrics[k] for k in ("accuracy", "f1")}} for result in results]))


if __name__ == "__main__":
    main()
