"""How runs start, on one machine or many, and what happens when they end. No training in here: ranks are `maskloom.train`.

hostfile     hosts and slots, checked
local        ranks on this machine, as processes that never outlive this one
remote       ranks on the hosts of a hostfile, through the deepspeed launcher
supervisor   attempt after attempt: which hosts, which port, whether another one is worth it, the honest exit code
doctor       what `maskloom doctor` finds out before a run
"""
