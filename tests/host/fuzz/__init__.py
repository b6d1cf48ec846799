"""Every node of the pack with bad values at every input, one at a time, through the host's executor.

    python tests/host/fuzz [--quick] [--only ZeroConEditMask ...] [--report FILE]

sound     one graph a node that runs, on the toy world with few steps, and the values that its links carry
bad       the values that take the place of one of them, by the type of the input
verdicts  what became of a graph: fine, refused in a sentence, or one of the three that must not be
"""
