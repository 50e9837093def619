"""The other side of `llama_cpp`: run by a Python that has llama-cpp-python, it answers on standard output.

Each line in is {"mode": "plain" | "logprobs", "count": n}, each line out {"tokens": n, "seconds": s}. It imports
nothing of this repository, so it wants `python -P`: else this folder's llama_cpp.py is found first.
"""

import json
import sys
import time


def main() -> None:
    """Serve until standard input ends. Arguments: the GGUF file, threads, the prompt's ids as JSON."""
    from llama_cpp import Llama

    path, threads, prompt = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    options = {"n_ctx": 512, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    # Log-probabilities come only from a model that keeps all logits; the other need not.
    models = {mode: Llama(path, logits_all=mode == "logprobs", **options) for mode in ("plain", "logprobs")}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        model = models[order["mode"]]
        model.reset()
        start = time.perf_counter()
        if order["mode"] == "plain":
            tokens = 0
            for _ in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
                tokens += 1
                if tokens == order["count"]:
                    break
        else:
            done = model.create_completion(
                prompt, max_tokens=order["count"], temperature=0.0, repeat_penalty=1.0, logprobs=5
            )
            tokens = done["usage"]["completion_tokens"]
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
