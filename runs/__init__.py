"""Work on many items that may be stopped at any time, and on which workers may die: folders, data sets, clusters.

records     rows, a line of JSON each, under the key of their item
engine      what is not there yet is done: in this process, or by several
schedule    who does what next: pure bookkeeping
fleet       workers that are lost and started again, each driven by a thread
simulation  the schedule under a clock of its own, for numbers of workers that are not at hand; writes into docs/scale.md
servers     workers that are ComfyUI servers: ours, Ray's, or somebody's at a URL
translate   a workflow over a table or a folder of pictures: `python dev.py translate`
"""
