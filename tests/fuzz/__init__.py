"""Commands under bad input in endless forms: seeded, counted, each input within a limit of time and memory.

    python -m fuzz --inputs 3100 --seed 0 --kinds adapters,tables        # with tests/ on PYTHONPATH; `make fuzz`

A *target* is one kind of input (`targets`): how sound originals are made, a hypothesis strategy that draws plans of inputs, and
the function that makes an input of a plan in the current folder, runs the command on it and judges what came of it. Inputs run
in a worker process (`engine`) that is replaced when it dies or has to be stopped.
"""
