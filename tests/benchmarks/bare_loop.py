"""The same trials back to back in one process with PEFT and a training loop, without any orchestration or logging.

What the arithmetic alone costs; one of the three ways that ``sweep.py`` times. Prints one JSON line.
"""

import json
import os
import random
from typing import Any

from plain_tune import arguments


def main() -> None:
    options = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import pandas
    import torch
    from peft import LoraConfig, get_peft_model
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    frames = {split: pandas.read_csv(getattr(options, split)) for split in ("train", "validation")}
    labels = sorted(frames["train"].label.unique())
    texts = {split: frame.text.tolist() for split, frame in frames.items()}
    gold = {split: [labels.index(label) for label in frame.label] for split, frame in frames.items()}

    def batch(split: str, rows: list[int]) -> tuple[Any, torch.Tensor]:
        chosen = [texts[split][i] for i in rows]
        inputs = tokenizer(chosen, truncation=True, max_length=options.tokens, padding=True, return_tensors="pt")
        return inputs, torch.tensor([gold[split][i] for i in rows])

    chooser = random.Random(0)
    bf16 = options.precision == "bf16"
    results = []
    for trial in json.loads(options.trials.read_text()):
        rank, lr = trial["rank"], trial["lr"]
        torch.manual_seed(0)
        dtype = torch.bfloat16 if bf16 else torch.float32  # of the frozen weights; PEFT's own are float32
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(labels), dtype=dtype)
        lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
        model = get_peft_model(model, lora).train()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=0.0)
        scheduler = get_linear_schedule_with_warmup(optimizer, 0, options.steps)
        for _ in range(options.steps):
            inputs, targets = batch("train", chooser.sample(range(len(gold["train"])), 8))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(**inputs).logits
            torch.nn.functional.cross_entropy(logits.float(), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        model.eval()
        predicted: list[int] = []
        rows = list(range(len(gold["validation"])))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for at in range(0, len(rows), 64):
                inputs, _ = batch("validation", rows[at : at + 64])
                predicted += model(**inputs).logits.argmax(-1).tolist()
        accuracy = accuracy_score(gold["validation"], predicted)
        f1 = f1_score(gold["validation"], predicted, average="macro")
        results.append({"rank": rank, "lr": lr, "accuracy": accuracy, "f1": f1})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
