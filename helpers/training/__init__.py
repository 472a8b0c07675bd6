"""The network, the recipe, the loop, and the judgement of what came out."""
