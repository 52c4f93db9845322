"""What else can be done with a model than train it once: `python -m tinymoe.recipes NAME --help`.

    upcycle      a dense model becomes a sparse one that computes the same, and trains on
    distill      a student learns from a teacher's probabilities, dense from sparse or sparse from dense
    prune        experts that are used least, or missed least, are taken out
    independent  experts trained apart, each on its part of the text, are chosen, connected and trained on together
    search       which shape of model at one price per token? (`tinymoe.recipes.search`)

Each trains on one processor with the common trainer, small models by default, and prints a table.
"""
