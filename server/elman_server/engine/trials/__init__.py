"""Trial runs of a bundle's graphs when it is loaded, with random inputs, on the CPU.

limits    how long a run may take
inputs    random numbers and tokens
graph     a graph whose tensors have their rows on axis 0
rows      the check that a row's results depend on nothing but the row
culprits  which node makes them depend on something else
step      steps of sequences
encoder   sources
nodes     nodes of trees
"""
