"""The command line: ``python train.py {fit,validate,test,plan,compare} -c FILE [--any.setting value]``."""

from fedssl.cli import main

if __name__ == "__main__":
    main()
