"""How the tabletop's models are trained: README.md says in which order."""
