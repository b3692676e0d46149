"""Reward server with 64 concurrent clients, beside a plain loop of transformers over the same answers.

    python -m benches.serve [--quick] [--model MODEL] [--threads N]

`shfcas serve-reward` runs in a process of its own. Each client sends an answer, waits for the reward, and sends the
next one. The loop is what one would write without a server: batches of 16 in the order of arrival, padded to the
longest, in a process of its own too. `of the loop` divides the answers per second by the loop's. Every served reward
is compared with the loop's.

Without --model, it is a Llama of 29 million random weights. Conversations have 40 to 300 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benches.bench import Case, Settings, report
from benches.clock import FULL, QUICK

Spent = tuple[float, list[float], list[float]]  # seconds, seconds of each request, rewards
CLIENTS, BATCH = 64, 16
TARGET = 0.9  # of the loop's answers per second
WORDS = [
    "the",
    "soup",
    "was",
    "good",
    "and",
    "the",
    "bread",
    "was",
    "fine",
    "a",
    "film",
    "with",
    "an",
    "ending",
    "how",
    "late",
    "is",
    "a",
    "train",
]


def write_model(folder: Path, layers: int = 8, size: int = 512) -> str:
    """Writes a random decoder with a head; returns its folder."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.support.tiny import policy_tokenizer

    tokenizer = policy_tokenizer()
    tokenizer.model_max_length = 2048
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def conversations(count: int) -> list[tuple[str, str]]:
    """Prompts and answers."""
    rng = random.Random(0)
    return [(f"How was it, {i}?", " ".join(rng.choices(WORDS, k=rng.randint(20, 180)))) for i in range(count)]


def loop(model_name: str, count: int) -> dict[str, Any]:
    """Scores all answers in a plain loop; returns seconds and rewards."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_name, dtype=torch.float32).eval()
    asked = conversations(count)
    rewards: list[float] = []
    for timed in (False, True):  # the first batch warms up
        begin = time.perf_counter()
        for start in range(0, count if timed else BATCH, BATCH):
            chats = [
                [{"role": "user", "content": p}, {"role": "assistant", "content": a}]
                for p, a in asked[start : start + BATCH]
            ]
            texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
            batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                found = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits.squeeze(-1)
            rewards += found.tolist() if timed else []
    return {"seconds": time.perf_counter() - begin, "rewards": rewards}


async def clients(address: str, count: int) -> Spent:
    """Sends all answers from the clients; returns seconds, the seconds of each request, and the rewards."""
    import aiohttp

    asked = conversations(count)
    left, taken, rewards = iter(range(count)), [0.0] * count, [0.0] * count
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            for i in left:
                begin = time.perf_counter()
                body = {"prompts": [asked[i][0]], "completions": [asked[i][1]]}
                async with session.post(f"{address}/score", json=body) as reply:
                    assert reply.status == 200, await reply.text()
                    (rewards[i],) = (await reply.json())["rewards"]
                taken[i] = time.perf_counter() - begin

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return time.perf_counter() - begin, taken, rewards


def served(model: str, count: int, batch_size: int, environment: dict[str, str]) -> Spent:
    """Runs the server and the clients."""
    command = [sys.executable, "-m", "shfcas", "serve-reward", model, "--port", "0", "--batch_size", str(batch_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        address = process.stdout.readline().partition(" at ")[2].partition(" ")[0]
        asyncio.run(clients(address, BATCH))  # warms up
        return asyncio.run(clients(address, count))
    finally:
        process.terminate()
        process.wait()


def tables(model: str, count: int, threads: int) -> Iterator[list[Case]]:
    """Yields one table."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benches.serve", "--loop", "--model", model, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    plain = json.loads(done.stdout.splitlines()[-1])
    cases: list[Case] = [{"case": f"loop, batches of {BATCH}", "answers/s": count / plain["seconds"]}]
    for batch_size in (1, 8):
        seconds, taken, rewards = served(model, count, batch_size, environment)
        points = statistics.quantiles(taken, n=100, method="inclusive")
        cases.append(
            {
                "case": f"server, batch_size {batch_size}",
                "clients": CLIENTS,
                "answers/s": count / seconds,
                "of the loop": plain["seconds"] / seconds,
                "target": TARGET,
                "p50 ms": points[49] * 1e3,
                "p99 ms": points[98] * 1e3,
                "difference": max(abs(a - b) for a, b in zip(rewards, plain["rewards"], strict=True)),
            }
        )
    yield cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer answers and a smaller model")
    parser.add_argument("--model", help="reward model with a chat template (default: random weights)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--count", type=int, help="answers (default: 1024, or 128 with --quick)")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    count = given.count or (128 if given.quick else 1024)
    if given.loop:
        print(json.dumps(loop(given.model, count)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or write_model(Path(folder), *((2, 128) if given.quick else (8, 512)))
        settings = Settings(QUICK if given.quick else FULL, [given.threads], "cpu", [])
        report("serve", tables(model, count, given.threads), settings)


if __name__ == "__main__":
    main()
