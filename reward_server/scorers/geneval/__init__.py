"""GenEval: does the picture show the objects, counts, colours and positions that were asked for."""
