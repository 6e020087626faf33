"""How runs start, on one machine or many, and what happens when they end. No training in here: ranks are `maskloom.train`.

Who starts whom:

    maskloom train CONFIG                 supervisor -> local -> tie -> rank 0, rank 1, ...
    maskloom train CONFIG --hostfile H    supervisor -> probe -> ssh -> each host: can it take ranks?
                                                     -> remote -> tie -> deepspeed's launcher -> pdsh -> ssh -> ranks on each host
                                                     -> guard, a process beside the supervisor

What ends what:

    a request to stop            local passes the signal on to every rank. remote writes RUN/stop: signals do not cross pdsh
    a rank that fails            the others have a short time to say so; then local or remote kills them
    a supervisor that is killed  the kernel kills what is tied to it; guard ends the ranks on all hosts, by their token
    an attempt that fails        supervisor makes another one, or ends with the honest exit code

    hostfile     hosts and slots, checked                     environment  the variables that ranks on other hosts get
    ssh          never asks, never waits for ever             ending       requests to stop, exit codes in words
    leftovers    tie, guard, and the end of what is left      doctor       what `maskloom doctor` finds out before a run
"""
