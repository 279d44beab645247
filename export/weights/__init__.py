"""Where each weight lies in a checkpoint, and the recipes that graphs bind it with."""
