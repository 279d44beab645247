"""The small demo checkpoints, their held-out examples, and the code that trains them."""

DEMOS = (
    "instructblip-demo-vicuna",
    "instructblip-demo-flant5",
    "blip2-demo-opt",
    "blip2-demo-flant5",
    "minigpt4-demo",
    "minigpt4-demo-llama2",
)
"""One of every family."""
