"""Runs side by side, to look at. No torch is imported here: a page should open at once.

links        a folder in which TensorBoard finds the runs, under names that tell them apart
translated   runs of earlier versions under the tags of today
server       TensorBoard, and the address of its first page

figures      what `maskloom compare` compares: figures of runs, evaluations of the same steps
differences  settings and versions in which runs differ
chart        curves as text
"""
