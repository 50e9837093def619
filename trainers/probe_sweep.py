"""Which hidden layer tells most: cross-validation by question on the training split. Knows no run but its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from trainers.probe_data import answer_table, spread
from trainers.run_folder import Run, TrainingError, write_json
from trainers.training_set import TrainingSet, balanced_weights, fold_of, has_answer_label, macro_auroc
from uqchat.estimators.probe_parts import PartConfig, Reading, StackedMLP

FILE = "sweep.json"
FOLDS, EPOCHS, BATCH, RATE, SIZE, DROPOUT = 3, 6, 256, 2e-3, 64, 0.3
MAX_ANSWERS = 12_000  # more change the order of the layers no more


def sweep_layers(data: TrainingSet, positions: Sequence[str], run: Run, seed: int) -> tuple[int, ...] | None:
    """The layer with the best cross-validated AUROC, mean over sets and styles; None when the run is to stop.

    What was found is kept in sweep.json, so that a resumed run does not look again.

    Raises:
        TrainingError: the caches hold no hidden states.
    """
    layers = data.caches[0].hidden_layers
    if not layers:
        raise TrainingError("A probe reads hidden states, and these caches hold none. Generate with --layers.")
    path = run.path / FILE
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    labelled = [i for i, row in enumerate(data.rows) if has_answer_label(row)]
    step = max(1, len(labelled) // MAX_ANSWERS)
    data = data.subset(labelled[::step])
    for layer in layers:
        if str(layer) not in found:
            if run.must_stop:
                return None
            config = PartConfig(tuple(Reading(layer, position) for position in positions), sizes=(SIZE,))
            found[str(layer)] = cross_validate(data, config, seed)
            run.log(f"layer {layer}: cross-validated AUROC {found[str(layer)]:.4f}")
            if run.is_main:
                write_json(path, found)
    return (max(layers, key=lambda layer: found[str(layer)]),)


def cross_validate(data: TrainingSet, config: PartConfig, seed: int, folds: int = FOLDS) -> float:
    """AUROC, mean over sets and styles, of scores that each fold's answers get from networks of the other folds."""
    inputs, labels = answer_table(data, config).inputs, data.is_error()
    fold = torch.tensor([fold_of(row, folds, seed) for row in data.rows])
    raw = torch.zeros(len(labels))
    for number in range(folds):
        network = quick_fit(inputs[fold != number], labels[fold != number], config, seed)
        with torch.inference_mode():
            raw[fold == number] = network(inputs[fold == number]).mean(-1)
    return macro_auroc(raw.tolist(), labels.tolist(), data.groups())["auroc"]


def quick_fit(inputs: torch.Tensor, labels: torch.Tensor, config: PartConfig, seed: int) -> StackedMLP:
    """Small networks on a few thousand rows, in seconds and in memory only."""
    torch.manual_seed(seed)
    network = StackedMLP(inputs.shape[1], config.sizes, config.members, DROPOUT).train()
    network.mean, network.scale = spread(inputs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    weights = balanced_weights(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(min(BATCH, max(8, len(inputs) // 16))):
            logits = network(inputs[rows])
            wanted = labels[rows, None].expand_as(logits)
            each = binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
            optimizer.zero_grad()
            (each * weights[rows]).mean().backward()
            optimizer.step()
    return network.eval()
