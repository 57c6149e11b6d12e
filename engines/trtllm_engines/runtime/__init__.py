"""From requests to tokens.

request.py, slots.py   a request's life; the running ones as vectors
pages.py               which KV cache pages are free
scheduler.py           what the next step runs -> batch.py: StepBatch
engine_loop.py         schedule, launch, take the previous step in; streaming, stops, failures; step_log.py
observer.py            who watches a step: ranges.py
rank.py                a device, its weights and its KV cache; wire.py: a step as bytes, for ranks elsewhere
cpu.py, cuda.py        executors of a plan on one rank, over device_state.py, inputs.py, sampler.py
"""
