"""Reads prompts with vLLM, in an environment of its own: see test_vllm.py.

PYTHON vllm_worker.py JOB.json: prints, as the last line, what JOB's model says.
"""

import json
import sys

import vllm
from vllm.lora import request


def main():
  with open(sys.argv[1], encoding="utf-8") as file:
    job = json.load(file)
  options = {}
  if job["adapter"]:
    options = {"enable_lora": True, "max_lora_rank": 8}
  model = vllm.LLM(
    job["model"],
    dtype="float32",
    max_model_len=job["length"] + 16,
    enforce_eager=True,
    **options,
  )
  adapter = job["adapter"] and request.LoRARequest("adapter", 1, job["adapter"])
  sampling = vllm.SamplingParams(
    temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=0
  )
  (read,) = model.generate(
    {"prompt_token_ids": job["prompt"]}, sampling, lora_request=adapter
  )
  log_p = [
    given[token].logprob
    for token, given in zip(job["prompt"][1:], read.prompt_logprobs[1:], strict=True)
  ]
  (chat,) = model.chat(job["messages"], vllm.SamplingParams(max_tokens=1))
  reply, asked = read.outputs[0].token_ids, chat.prompt_token_ids
  print(json.dumps({"log_p": log_p, "reply": reply, "asked": asked}))


if __name__ == "__main__":
  main()
