"""What public systems do differently: balance losses and capacities as presets, ways to dispatch, bugs they had.

Reading order: conventions (the same batch, the numbers of each system) · dispatchers (ways to bring rows to experts) ·
all_reduce (how workers add up their gradients) · museum (bugs, and the check that catches each).
"""
