"""`python -m serving` is `iblip`."""

from serving.cli import main

main()
