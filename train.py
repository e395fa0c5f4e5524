"""Federated self-supervised representation learning for devices with little memory.

usage: train.py {fit,validate,test,plan,compare} [-c FILE] [--any.setting VALUE]

sub-commands:
  fit         trains, then evaluates on the test split and exports the encoder
  validate    measures kNN with held-back training images as queries
  test        evaluates an encoder on the test split
  plan        predicts what each device will pay for a federated run
  compare     runs what is missing of a set of runs, and compares runs

options:
  -h, --help  of a sub-command, such as `train.py fit --help`, lists all its settings

FILE is a path or a name in configs/. All further options follow the sub-command.
"""

import atexit
import gc
import sys

if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        # Without the imports below, which take seconds.
        print(__doc__.strip())
        sys.exit(0 if sys.argv[1:] else 2)
    # What torch and Lightning make on import stays: to look for garbage there takes a quarter of the time.
    gc.disable()
    from fedssl.__main__ import main

    gc.enable()
    gc.freeze()
    # Extension modules take what is frozen at the very end for leaked, and say so at length.
    atexit.register(gc.unfreeze)
    main()
