"""`python -m gtvray`: the command line without its script, for jobs on a cluster."""

from gtvray.cli.main import main

if __name__ == "__main__":
    main()
