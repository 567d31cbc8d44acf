from helpers.failures import explanation, recognise

log = "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB"
print(recognise(log).failure.name)
print(explanation(log))
