"""The other side of `lm_polygraph`: run by a Python that has lm-polygraph, it answers on standard output.

Each line in is {"way": "documented" | "lean", "dtype": "float32", "questions": [...], "count": n}, each line out
{"tokens": n, "seconds": s, "ids": [[...]], "entropy": [...], "surprise": [...]}: of each answer its mean token entropy
and its negative log-probability, in nats. The documented way asks for the entropy of one question, and gives no more.
"""

import json
import os
import sys
import time


def main() -> None:
    """Serve until standard input ends. Arguments: the model's folder, threads."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print must not be taken for an answer
    import torch

    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    import lm_polygraph  # noqa: F401  takes its time; an error of its own ends this before it is ready

    models = {}
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        kind = (order["way"], order["dtype"])
        if kind not in models:
            models[kind] = load(folder, *kind)
        models[kind].generation_parameters.max_new_tokens = order["count"]
        answer = documented if order["way"] == "documented" else lean
        print(json.dumps(answer(models[kind], order["questions"], order["count"])), file=out, flush=True)


def load(folder, way, dtype):
    """Its white-box model. The documented way computes attention maps, which transformers gives in eager mode only."""
    import torch
    from lm_polygraph import WhiteboxModel
    from lm_polygraph.utils.generation_parameters import GenerationParameters
    from transformers import AutoModelForCausalLM, AutoTokenizer

    attention = "eager" if way == "documented" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return WhiteboxModel(model.eval(), tokenizer, folder, "CausalLM", GenerationParameters(), instruct=True)


def documented(model, questions, count):
    """The call that its documentation begins with."""
    from lm_polygraph import estimate_uncertainty
    from lm_polygraph.estimators import MeanTokenEntropy

    (question,) = questions
    start = time.perf_counter()
    result = estimate_uncertainty(model, MeanTokenEntropy(), question)
    seconds = time.perf_counter() - start
    tokens = len(result.generation_tokens) + 1  # it leaves out the last one
    return {"tokens": tokens, "seconds": seconds, "ids": [], "entropy": [float(result.uncertainty)], "surprise": []}


def lean(model, questions, count):
    """Its manager, told to keep no attention maps and no hidden states, over all questions as one batch."""
    from lm_polygraph.defaults.register_default_stat_calculators import register_default_stat_calculators
    from lm_polygraph.estimators import MaximumSequenceProbability, MeanTokenEntropy
    from lm_polygraph.utils.builder_enviroment_stat_calculator import BuilderEnvironmentStatCalculator
    from lm_polygraph.utils.dataset import Dataset
    from lm_polygraph.utils.manager import UEManager

    start = time.perf_counter()
    manager = UEManager(
        Dataset(questions, [""] * len(questions), batch_size=len(questions)),
        model,
        [MeanTokenEntropy(), MaximumSequenceProbability()],
        builder_env_stat_calc=BuilderEnvironmentStatCalculator(model),
        available_stat_calculators=register_default_stat_calculators(
            "Whitebox", output_attentions=False, output_hidden_states=False
        ),
        generation_metrics=[],
        ue_metrics=[],
        processors=[],
        ignore_exceptions=False,
        verbose=False,
        max_new_tokens=count,
    )
    manager()
    seconds = time.perf_counter() - start
    ids = [list(map(int, answer)) for answer in manager.stats["greedy_tokens"]]
    return {
        "tokens": sum(map(len, ids)),
        "seconds": seconds,
        "ids": ids,
        "entropy": list(map(float, manager.estimations["sequence", "MeanTokenEntropy"])),
        "surprise": list(map(float, manager.estimations["sequence", "MaximumSequenceProbability"])),
    }


if __name__ == "__main__":
    main()
