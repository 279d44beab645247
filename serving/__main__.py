"""`python -m serving` is `iblip`."""

from iblip.serving.cli import main

main()
