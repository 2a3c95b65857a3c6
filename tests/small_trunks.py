"""Arguments of small networks of every kind."""

PUBLISHED = {"widths": (6, 8), "groups": 3, "dropout": 0.0, "attention_head_width": 4}
NCSNPP = {"resampling": "block", "taps": (1, 3, 3, 1), "input_pyramid": "residual", "embedding": "fourier"}
ADM = {
    "widths": (6, 8),
    "groups": 3,
    "dropout": 0.0,
    "blocks_per_level": 1,
    "attention_levels": (1,),
    "attention_head_width": 4,
}
EDM2 = {"widths": (6, 8), "blocks_per_level": 1, "attention_levels": (1,), "attention_head_width": 4}
