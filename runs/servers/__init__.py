"""ComfyUI servers as workers of a fleet.

job       what crosses to a server and back: a graph with its pictures, and what came out
own       a server of ours on this machine, with a private base directory
running   one that runs already, at a URL
on_ray    one in an actor of Ray, on any machine of a cluster
identity  that all of them would give the same results
choice    `--engine` and `--servers`
"""
