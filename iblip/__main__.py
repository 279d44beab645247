"""`python -m iblip` is the command `iblip`."""

from iblip.serving.start import main

main()
