"""Run the command ``persipubsub`` as ``python -m persipubsub``."""

from persipubsub.cli import main

if __name__ == "__main__":  # the processes of the demo import this module again, under another name
    main.main(prog_name="persipubsub")
