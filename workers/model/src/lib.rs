//! Towers, losses, optimizers and checkpoints.
