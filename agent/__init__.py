"""The PPO policy: network, training, proposals, pretrained weights."""
