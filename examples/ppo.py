"""PPO with your own model and your own reward: python examples/ppo.py MODEL OUTPUT."""

import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer


def brevity(completion_ids, **columns):  # one number per answer, higher is better
    return [-float(len(ids)) for ids in completion_ids]


model, output = sys.argv[1:]
prompts = [f"What do you know about {topic}?" for topic in ("bread", "trains", "the moon", "chess")]
trainer = PPOTrainer(
    model=model,
    args=PPOConfig(output, num_rollouts=8, rollout_batch_size=16, max_completion_length=32, learning_rate=1e-4),
    train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": prompt}] for prompt in prompts]}),
    processing_class=AutoTokenizer.from_pretrained(model),
    reward_funcs=brevity,
    peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
)
trainer.train()
trainer.save_merged_policy(output)
