"""The benchmark: AMED beside many other solvers, each at its best settings; `python -m bench`."""
