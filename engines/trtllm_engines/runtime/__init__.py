"""From requests to tokens.

request.py, slots.py   a request's life; the running ones as vectors
pages.py               which KV cache pages are free
scheduler.py           what the next step runs -> batch.py: StepBatch
engine_loop.py         schedule, launch, take the previous step in; streaming, stops, failures; step_log.py
cpu.py, cuda.py        executors of a plan, over device_state.py, inputs.py, sampler.py
"""
