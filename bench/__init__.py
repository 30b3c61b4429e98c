"""The benchmark: AMED beside every solver an artist could pick, each at its best; `python -m bench`."""
