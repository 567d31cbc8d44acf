from helpers.failures import recognise

known = recognise("ModuleNotFoundError: No module named 'sklearn'")
print(known.failure.name)
print(known.means)

# It prints:
#   module-missing
#   sklearn is not installed in the environment that this kernel runs in.
