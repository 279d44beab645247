"""The demo model of iblip, as package data: the folder `instructblip-demo-vicuna`."""
