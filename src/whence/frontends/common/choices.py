"""Choices and defaults that the help of commands names; a test compares them with the registries of the library.

They are repeated here so that `whence COMMAND --help` and shell completion answer without torch.
"""

METHODS = (
    "lrp", "gradient_times_input", "sensitivity", "integrated_gradients", "smooth_grad", "guided_backprop", "deconvnet",
    "grad_cam", "layer_cam", "grad_cam_plus_plus", "hires_cam", "xgrad_cam", "eigen_cam", "score_cam", "ablation_cam",
    "full_grad", "simple_taylor", "occlusion", "feature_ablation", "rise", "shapley",
)  # fmt: skip
PRESETS = (
    "attn_lrp", "cp_lrp", "epsilon_gamma", "epsilon_gamma_box", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1",
    "deep_taylor", "vgg16_falling_gamma",
)  # fmt: skip
BOX_PRESETS = ("epsilon_gamma_box", "deep_taylor")  # which need bounds of the pixels
METHODS_HELP = f"Names separated by commas: {', '.join([*METHODS, 'random'])}; or presets of LRP rules: {', '.join(PRESETS)}."
EVALUATED_METHODS = ("lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "random")
METRICS = (
    "srg", "mif", "lif", "aopc", "abpc", "deletion", "insertion", "selectivity", "irof", "monotonicity", "sensitivity_n",
    "infidelity", "continuity", "max_sensitivity", "relative_input_stability", "relative_output_stability", "mprt",
    "smooth_mprt", "efficient_mprt", "random_logit", "pointing_game", "relevance_mass", "relevance_rank", "top_k_intersection",
    "sparseness", "complexity", "completeness", "conservation_gap", "relevance_ratio",
)  # fmt: skip
EVALUATED_METRICS = ("srg", "sparseness", "max_sensitivity")
IMPUTERS = ("constant", "mean", "blur", "other_places", "inpainting")
PARAMETERIZATIONS = ("pixels", "fourier", "maco", "cppn")
SUITES = (
    "xai_tris", "hand_made", "lstm_arithmetic", "mosaics", "lexical_shortcuts", "time_series", "graph_motifs", "drawn_parts",
)  # fmt: skip
GROUP_COLUMNS = ("prediction", "label", "target")
DATA_HELP = (
    "A folder of images (in subfolders named by class, if labels are known), an .npz with images and labels, "
    "an .npy batch, or a .txt with one text per line for hf: models. Default: the 50 bundled digits."
)
N_CHANNELS, N_REFERENCES = 5, 4
SHARD_SIZE = 256
