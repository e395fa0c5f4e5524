"""The command line in a checkout: ``python train.py`` is ``fedssl`` and ``python -m fedssl``."""

from fedssl.__main__ import start

if __name__ == "__main__":
    start()
