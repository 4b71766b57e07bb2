"""Model families by name, each built from scratch with random weights.

No model of ours has dropout: the loss of a step then follows from the weights and the batch alone, so that placements of
one model can be compared by their losses. `torch.export` captures every one of them.
"""
