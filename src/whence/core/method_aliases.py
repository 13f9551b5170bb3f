"""Names of other libraries for methods: what they are here, or what to use where nothing is the same."""

ALIASES = {  # by names in lower case without separators: methods that compute the same numbers
    "gradientxinput": "gradient_times_input",
    "inputxgradient": "gradient_times_input",
    "inputtimesgradient": "gradient_times_input",
    "ig": "integrated_gradients",
    "deconvolution": "deconvnet",
    "guidedbackpropagation": "guided_backprop",
    "gradcam++": "grad_cam_plus_plus",
    "shap": "shapley",
    "kernelshap": "shapley",
    "kernelexplainer": "shapley",
    "samplingexplainer": "shapley",
    "permutationexplainer": "shapley",
    "shapleyvalues": "shapley",
    "shapleyvaluesampling": "shapley",
    "permutationshap": "shapley",
    "samplingshap": "shapley",
}
WITH_BACKGROUND = (
    "expected gradients have no short name, as they need samples: pass method=whence.ExpectedGradients(background)"
)
ABSOLUTE = (
    "the absolute gradient (captum's Saliency) has no name of its own; 'sensitivity' is its square, which ranks features alike"
)
LAYERS = "relevance of layers is part of every explanation by LRP and gradient × input: pass layers=['name'] to explain()"
TREES = (
    "for trees pass method=whence.Shapley(background=rows), exact for up to 11 features, which are TreeExplainer's "
    "interventional values"
)
DIFFERENT = {  # by names in lower case without separators: what to use, in one sentence
    "saliency": ABSOLUTE,
    "gradient": ABSOLUTE,
    "gradients": ABSOLUTE,
    "vanillagradient": ABSOLUTE,
    "expectedgradients": WITH_BACKGROUND,
    "gradientshap": f"GradientSHAP is expected gradients with noise; {WITH_BACKGROUND}",
    "gradientexplainer": f"SHAP's GradientExplainer is expected gradients; {WITH_BACKGROUND}",
    "deeplift": (
        "DeepLIFT's rules are not built in; pass method=whence.LRP(baseline=x0) for relevance of the differences from a "
        "baseline by rules, or 'integrated_gradients', whose sum is the difference of the outputs"
    ),
    "deepliftshap": f"DeepLIFT-SHAP averages over baselines as expected gradients do; {WITH_BACKGROUND}",
    "deepexplainer": f"SHAP's DeepExplainer averages over baselines as expected gradients do; {WITH_BACKGROUND}",
    "lime": (
        "LIME is not built in, as its weights depend on a kernel and on its samples; pass "
        "method=whence.Shapley(feature_mask=whence.superpixels(x, 50)), the regression whose weights are Shapley values, or "
        "whence.FeatureAblation with the same mask"
    ),
    "noisetunnel": "captum's NoiseTunnel is whence.SmoothGrad(method), around any method",
    "guidedgradcam": "guided Grad-CAM is the product of the relevance by 'guided_backprop' and the map of 'grad_cam'",
    "layergradcam": "captum's LayerGradCam is method=whence.GradCAM('layer'), here with ReLU and at the size of the input",
    "attention": "attention weights are not relevance; use 'lrp', which propagates through them (AttnLRP)",
    "attentionrollout": "attention rollout is not built in: it ignores values and MLPs; use 'lrp' (AttnLRP)",
    "rollout": "attention rollout is not built in: it ignores values and MLPs; use 'lrp' (AttnLRP)",
    "layerintegratedgradients": LAYERS,
    "layerconductance": LAYERS,
    "conductance": LAYERS,
    "layeractivation": "activations are no explanation; whence.layers.layer_shapes lists layers",
    "treeexplainer": TREES,
    "treeshap": TREES,
    "linearexplainer": "for linear models pass method=whence.Shapley(background=rows), which is exact",
    "featurepermutation": "permuted features are whence.FeatureAblation(baselines=rows), with the permuted rows as baselines",
}


def plain_name(name: str) -> str:
    """Return a name in lower case without separators.

    >>> plain_name("Input-X_Gradient")
    'inputxgradient'
    """
    return "".join(c for c in name.lower() if c.isalnum() or c == "+")
