"""`python -m iblip` is the command `iblip`."""

from iblip.serving.cli import main

main()
